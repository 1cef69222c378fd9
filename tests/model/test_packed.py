"""Packed weights give what plain ones give."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from pipedec.config import child_environment
from pipedec.model.packed import pack, packable_dtypes


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(48, 96, bias=False), nn.Linear(96, 40)).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", sorted(packable_dtypes(), key=str), ids=str)
@pytest.mark.parametrize("shape", [(0, 48), (1, 48), (3, 48), (17, 48), (2, 5, 48)], ids=str)
def test_products_are_those_of_plain_weights(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    plain = layers(dtype)
    pack([packed := copy.deepcopy(plain)])
    assert all(linear.weight.is_meta for linear in packed)
    rows = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(packed(rows), plain(rows))
    across = torch.randn(*reversed(shape), dtype=dtype).permute(*reversed(range(len(shape))))
    torch.testing.assert_close(packed(across), plain(across))


def test_plain_weights_are_given_up_once_they_are_packed() -> None:
    pack([packed := layers()])
    assert [linear.weight.is_meta for linear in packed] == [True, True]
    assert [linear.weight.shape for linear in packed] == [(96, 48), (40, 96)]


def test_other_types_stay_as_they_are() -> None:
    pack([half := layers(torch.float16)])
    assert not any(linear.weight.is_meta for linear in half)


def test_of_compiled_products_only_the_newest_are_kept() -> None:
    """Each takes half a megabyte, and a stage meets thousands of sizes."""
    code = """if True:
        import torch
        from pipedec.model.packed import chained_product, pack
        pack([])
        for rows in [*range(2, 302), 301, 2]:
            chained_product(torch.ones(rows, 8), torch.ones(4, 8))"""
    command = [sys.executable, "-c", code]
    environment = child_environment({"ONEDNN_VERBOSE": "profile_create"})
    for set_for_tests in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        del environment[set_for_tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    created = [line.split(",")[3] for line in done.stdout.splitlines() if ",create:" in line]
    assert created[-2:] == ["create:cache_hit", "create:cache_miss"]
