"""What `ps -o pid,comm`, `top` and `pgrep` call a process."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_NAME = 15  # linux/prctl.h


def name_process(name: str) -> None:
    """Call this process so, up to 15 bytes of it; not Linux: nothing changes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())
