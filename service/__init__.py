"""sdc: photographs as a few kilobytes of latent, over HTTP."""

import os

# Before numpy is imported: its idle BLAS threads would spin on the cores that the model needs next (a render: 120 -> 105 ms).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
