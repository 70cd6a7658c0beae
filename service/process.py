"""What is set once for the whole process, because defaults made for other programs cost this one time.  Knows nothing of what runs."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SWITCH_INTERVAL_S = 0.0005
"""a tenth of Python's own: the event loop asks for the interpreter after every system call, and a worker keeps it for so long
(measured: 8 % more pictures a second under load)"""

MOST_OPEN = 16_384
"""files and connections; an idle one takes 13 kB (measured), so 0.2 GB for all"""

VARIABLES = {"THP_MEM_ALLOC_ENABLE": ("1", "0"), "OPENBLAS_NUM_THREADS": ("1", ""), "GOMP_SPINCOUNT": ("1000", "300000")}
"""what ``before_libraries`` sets, and what says the same as setting nothing"""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 256 << 20
LARGEST_KEPT = 32 << 20
"""the most that glibc allows"""


def before_libraries() -> None:
    """Settings that numpy and torch read when they are loaded, so that this must come first.

    Idle threads of numpy's OpenBLAS would spin on the cores that the model needs next (a render: 120 -> 105 ms): it gets one.
    OpenMP's wait for a few microseconds and then sleep, or they spin on the cores that the workers need: a third more pictures compressed a
    second under load (14.9 -> 20.2), for 2 to 12 ms more of a render that is alone (measured, two cores).
    torch asks for huge pages for tensors of 2 MiB and more: what is beyond ``LARGEST_KEPT`` comes as fresh pages every time, and Stable
    Diffusion's decoder asks for gigabytes of that for one picture (64 MiB allocated and written: 50 -> 15 ms).
    """
    for name, (ours, _) in VARIABLES.items():
        os.environ.setdefault(name, ours)


@contextmanager
def kept() -> Iterator[None]:
    """In the block Python does not look for garbage, and what is there at its end it never looks at again.

    For imports: modules stay until the end.  Else the collector goes through some 270,000 objects of torch and diffusers six times while
    they are loaded, several times more when the process ends, and now and then while it serves, when everything stands still for a third
    of a second (measured).
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if "triton" in sys.modules:
            atexit.register(gc.unfreeze)  # it complains, in thirty lines, of what is not taken apart at the end
        if collecting:
            gc.enable()


def tune() -> None:
    """Let threads change places more often, and let glibc keep what is freed.

    Every picture needs the same buffers of some megabytes again.  By default a thread other than the first gives them back to the kernel
    and gets them as fresh pages, zeroed one by one: 5 of 27 ms of a coding (measured).  Memory still stays flat, at its highest.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not glibc: nothing to mend
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def open_many() -> None:
    """Let the process have as many files and connections open as it may, up to ``MOST_OPEN``.

    1,024 is what programs get that might use ``select``.  A thousand clients that keep a connection and say nothing would be all of them,
    and whoever asks for ``/livez`` waits.
    """
    try:
        import resource
    except ImportError:  # not Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS has another limit behind this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
