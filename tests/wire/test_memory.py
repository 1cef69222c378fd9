"""Memory of large frames stays with the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

ROUNDS, BLOCKS, PAGES = 20, 4, 1024
PROGRAM = f"""
import resource
from pipedec.wire.sockets import INSECURE, Transport

def use(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [bytearray(4096 * {PAGES}) for _ in range({BLOCKS})]
        for block in blocks:
            block[::4096] = bytes({PAGES})
        del blocks, block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

alone = use({ROUNDS})
with Transport(INSECURE):
    use(1)
    print(alone, use({ROUNDS}))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this system has no mallopt; use glibc")
def test_a_transport_lets_large_blocks_be_used_again() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    assert before > ROUNDS * PAGES, "what is freed goes back to the kernel"
    assert after < ROUNDS * PAGES / 10
