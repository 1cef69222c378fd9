"""The attention kernels compile for GPUs, whether there is one or not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipedec.config import child_environment

SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes that a program may have, by capability


def test_kernels_compile_and_fit(tmp_path: Path) -> None:
    environment = child_environment({"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)})
    command = [sys.executable, "-m", "tests.model.compile_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 3
    for kernel in found:
        assert kernel["shared"] <= SHARED[kernel["capability"]]
        assert kernel["tensor_cores"]
