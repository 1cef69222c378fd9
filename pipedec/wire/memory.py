"""Memory of large frames: kept by the process instead of given back to the kernel.

glibc's malloc returns large freed blocks at once, and the kernel gives them again page by page, zeroed, at the first
touch of each. A process that receives, computes and sends activations of half a megabyte does that with every one of
them: of the time that a hop takes the kernel, half.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_MIB = 1 << 20


def keep_freed_memory() -> None:
    """For the whole process, from now on: up to 256 MiB of freed memory stay. Without glibc, nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 * _MIB)  # the most that glibc takes
        mallopt(_TRIM_THRESHOLD, 256 * _MIB)
