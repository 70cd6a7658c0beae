"""torch and diffusers: load a model folder, warm it up, encode, restore, decode.

numpy in, numpy out.  Must not know about HTTP, files of pictures, the container or the queue.
"""

from service.engine import lean  # noqa: F401  before any other module here imports diffusers
