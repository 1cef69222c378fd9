"""The kernels compile for GPUs, whether there is one or not, and a program fits into their shared memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime import build

from pipedec.config import child_environment
from pipedec.errors import ModelError
from pipedec.model import triton_device

L4, A100, H100 = (89, 99, "fp16"), (80, 163, "bf16"), (90, 227, "bf16")  # with KiB of shared memory
KERNELS = {"_attend_piece", "_join_pieces", "_store_row", "_product", "_look_at_piece", "_join_row", "_draw_of_piece"}
KERNELS |= {"_eight_bit_product", "_stood_for"}
DOTS = {"_attend_piece", "_product", "_eight_bit_product"}


def compiled(folder: Path, capability: int, memory: int, dtype: str, *only: str) -> list[dict[str, Any]]:
    """What is told of each kernel."""
    environment = child_environment({"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)})
    command = [sys.executable, "-m", "tests.model.compile_kernels", str(capability), str(memory << 10), dtype, *only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(kernel["shared"] <= memory << 10 for kernel in found)
    return found


@pytest.mark.parametrize(
    ("gpu", "kernels"),
    # An A100 differs from an L4 in nothing but memory.
    [pytest.param(L4, KERNELS, id="L4"), pytest.param(A100, DOTS, id="A100"), pytest.param(H100, KERNELS, id="H100")],
)
def test_kernels_compile_and_fit(tmp_path: Path, gpu: tuple[int, int, str], kernels: set[str]) -> None:
    found = compiled(tmp_path, *gpu, *(kernels if kernels != KERNELS else ()))
    assert {kernel["kernel"] for kernel in found} == kernels
    for kernel in found:
        assert kernel["tensor_cores"] == (kernel["kernel"] in DOTS), kernel


def test_8_bit_weights_need_no_gpu_that_knows_them(tmp_path: Path) -> None:
    found = compiled(tmp_path, 75, 64, "fp16", "eight_bits")
    assert {kernel["kernel"] for kernel in found} == {"_eight_bit_product", "_stood_for"}


class Driver:
    """Triton's: the first use of it compiles some C."""

    @property
    def active(self) -> Any:
        return build._find_compiler("c")


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_device.triton.runtime, "driver", Driver())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ModelError, match=r"cannot be compiled: .*C compiler.* Install gcc"):
        triton_device.shared_memory.__wrapped__(torch.device("cuda", 0))


@pytest.mark.parametrize("asked", ["0", "1"])
def test_whether_kernels_are_interpreted_is_known_of_a_triton_without_knobs(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.delattr(triton_device.triton, "knobs", raising=False)  # as before 3.4
    monkeypatch.setenv("TRITON_INTERPRET", asked)
    assert triton_device.is_interpreted() == (asked == "1")
