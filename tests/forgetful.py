"""`sdc serve` that remembers no id: it has to ask its store about each, which it does behind the door."""

import service.storage.blobs
from service.cli import app

if __name__ == "__main__":
    service.storage.blobs.SEEN_S = 0.0
    app()
