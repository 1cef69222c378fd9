"""`python tether.py PARENT COMMAND...`: becomes COMMAND, which the kernel kills when process PARENT dies.

A supervisor that is killed with SIGKILL cannot clean up, so each child asks the kernel to. The request survives
`exec`; it is made here, in a process of its own, because code between fork and exec in a threaded parent may deadlock.
Run by path with -I -S, so that it costs milliseconds. Where the system has no such request (not Linux), it is left out.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, process `parent`, dies; end at once if it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request was made
        sys.exit(1)


def main() -> None:
    command = sys.argv[2:]
    die_with(int(sys.argv[1]))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
