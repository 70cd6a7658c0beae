import os

import torch

if not torch.cuda.is_available():  # the GPU's kernels are interpreted; triton reads this once, when something first imports it
    os.environ.setdefault("TRITON_INTERPRET", "1")
