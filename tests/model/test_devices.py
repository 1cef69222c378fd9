"""Devices by name, and what is said of one that is not there."""

from __future__ import annotations

import pytest
import torch

from pipedec.errors import ManifestError
from pipedec.model.devices import check_dtype, choose_device, computes_bfloat16


def test_auto_is_a_cuda_device_if_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta", "", "cuda:x"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(ManifestError, match="PIPEDEC_DEVICE") as refused:
        choose_device(name)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_computes_in_every_dtype(dtype: torch.dtype) -> None:
    check_dtype(torch.device("cpu"), dtype, "spec.model.dtype")


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu sse avx512f avx512_bf16 fsrm", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t: fpu avx2 avx512f avx512_bf16x", False),
    ],
)
def test_bfloat16_is_looked_up(flags: str, has: bool) -> None:
    assert computes_bfloat16(f"processor\t: 0\n{flags}\nbugs\t: spectre_v1") is has
