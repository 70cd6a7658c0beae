"""A Compressor that is killed once, in the middle of a batch: some of it is stored, and nobody has heard of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.bulk.compressor import Compressor
from service.bulk.rows import Columns


class Mortal(Compressor):
    """Dies in the batch that has the source ``last-words``; a file beside the sources says that it has, and who it was."""

    def __call__(self, batch: Mapping[str, Any]) -> Columns:
        mark = Path(self._job.base).with_name("killed")
        if "last-words.png" in list(batch["source"]) and not mark.exists():
            super().__call__({name: values[: len(values) // 2] for name, values in batch.items()})
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)
