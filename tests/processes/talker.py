"""`python -m tests.processes.talker`: tells of itself, then does as its argument says."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import tests.processes.heavy


def tell() -> None:
    told: dict[str, Any] = {
        "argv": sys.argv[1:],
        "imported by": tests.processes.heavy.IMPORTED_BY,
        "pid": os.getpid(),
        "session": os.getsid(0),
        "environment": dict(os.environ),
        "stdin": os.path.realpath("/proc/self/fd/0"),
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # that of the listing
        "default signals": [
            signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        ],
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    tell()
    print("and on stderr", file=sys.stderr, flush=True)
    if sys.argv[1] == "sleep":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        time.sleep(60)
    elif sys.argv[1] == "fail":
        sys.exit("it failed")
    elif sys.argv[1] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
