"""The kernels compile for GPUs, whether there is one or not, and a program fits into their shared memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from triton.runtime import build

from pipedec.config import child_environment
from pipedec.errors import ModelError
from pipedec.model import triton_device

KERNELS = {"_attend_piece", "_join_pieces", "_store_row", "_product", "_look_at_piece", "_join_row", "_draw_of_piece"}
KERNELS |= {"_quantized_product", "_stood_for"}
DOTS = {"_attend_piece", "_product", "_quantized_product"}


class GPU(NamedTuple):
    """What is compiled for one, and how much memory a program has there."""

    capability: int
    kibibytes: int
    dtype: str
    kernels: set[str]
    sizes: str


GPUS = {
    "T4": GPU(75, 64, "fp16", {"_quantized_product", "_stood_for"}, "small"),  # which has no use for the others
    "L4": GPU(89, 99, "fp16", KERNELS, "all"),
    "A100": GPU(80, 163, "bf16", DOTS, "large"),  # which differs from an L4 in nothing but memory
    "H100": GPU(90, 227, "bf16", KERNELS, "large"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What is told of each kernel, by compute capability."""
    folder = tmp_path_factory.mktemp("triton")
    environment = child_environment({"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)})
    gpus = [
        json.dumps((gpu.capability, gpu.kibibytes << 10, gpu.dtype, sorted(gpu.kernels), gpu.sizes))
        for gpu in GPUS.values()
    ]
    command = [sys.executable, "-m", "tests.model.compile_kernels", *gpus]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[int, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        kernel = json.loads(line)
        found.setdefault(kernel["capability"], []).append(kernel)
    return found


@pytest.mark.parametrize("name", GPUS)
def test_kernels_compile_and_fit(compiled: dict[int, list[dict[str, Any]]], name: str) -> None:
    gpu = GPUS[name]
    found = compiled[gpu.capability]
    assert {kernel["kernel"] for kernel in found} == gpu.kernels
    assert all(kernel["shared"] <= gpu.kibibytes << 10 for kernel in found)
    for kernel in found:
        assert kernel["tensor_cores"] == (kernel["kernel"] in DOTS and name != "T4"), kernel


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
