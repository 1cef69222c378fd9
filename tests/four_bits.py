"""Weights in 4 bits as each format writes them, and what they stand for, told from what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

GROUP = 32
IN_ORDER = tuple(range(8))
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Store = Callable[
    [torch.Tensor], dict[str, torch.Tensor]
]  # a weight [out, in] -> tensors by the last part of their names


class Grouped(NamedTuple):
    """Numbers [out, in], scales and zeros [out, groups]."""

    numbers: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


def grouped(weight: torch.Tensor, group: int | None, zeros: bool, dtype: torch.dtype = torch.float16) -> Grouped:
    """The nearest numbers from 0 to 15, with zeros from 1 to 15, or 8."""
    parts = weight.unflatten(1, (-1, group or weight.shape[1]))
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    scale = ((high - low) / 15 if zeros else parts.abs().amax(2) / 7).clamp(min=1e-4).to(dtype)
    zero = (-low / scale).round().clamp(1, 15) if zeros else torch.full_like(low, 8)
    numbers = (parts / scale[:, :, None] + zero[:, :, None]).round().clamp(0, 15)
    return Grouped(numbers.flatten(1).long(), scale, zero.long())


def packed(numbers: torch.Tensor, order: Sequence[int] = IN_ORDER) -> torch.Tensor:
    """[rows, columns] -> int32 [rows, columns / 8], the last filled up; place i has number `order[i]` of eight."""
    rows, columns = numbers.shape
    padded = torch.nn.functional.pad(numbers, (0, -columns % 8)).view(rows, -1, 8)
    words = torch.zeros(padded.shape[:2], dtype=torch.int64)
    for place, which in enumerate(order):
        words |= padded[:, :, which] << (4 * place)
    return words.to(torch.int32)


def unpacked(words: torch.Tensor, order: Sequence[int] = IN_ORDER) -> torch.Tensor:
    """What `packed` was given, with what the last was filled up with."""
    numbers = torch.zeros((*words.shape, 8), dtype=torch.int64)
    for place, which in enumerate(order):
        numbers[:, :, which] = words.long() >> (4 * place) & 15
    return numbers.flatten(1)


def compressed_tensors(group: int | None, zeros: bool, dtype: torch.dtype = torch.float16) -> Store:
    def store(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        numbers, scale, zero = grouped(weight, group, zeros, dtype)
        made = {"weight_packed": packed(numbers), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}
        return made | ({"weight_zero_point": packed(zero.T).T.contiguous()} if zeros else {})

    return store


def gptq(group: int | None, less: int) -> Store:
    def store(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        numbers, scale, zero = grouped(weight, group, zeros=True)
        return {
            "qweight": packed(numbers).T.contiguous(),
            "qzeros": packed(zero.T - less),
            "scales": scale.T.contiguous(),
            "g_idx": (torch.arange(weight.shape[1]) // (group or weight.shape[1])).int(),
        }

    return store


def awq(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    numbers, scale, zero = grouped(weight, GROUP, zeros=True)
    return {
        "qweight": packed(numbers.T, AWQ_ORDER),
        "qzeros": packed(zero.T, AWQ_ORDER),
        "scales": scale.T.contiguous(),
    }


def restored(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight [out, in] in float32 that a store's tensors stand for."""
    method = config["quant_method"]
    if method == "compressed-tensors":
        scale, numbers = tensors["weight_scale"], unpacked(tensors["weight_packed"])
        zero = unpacked(tensors["weight_zero_point"].T).T if "weight_zero_point" in tensors else 8
    else:
        order, scale = AWQ_ORDER if method == "awq" else IN_ORDER, tensors["scales"].T
        words = tensors["qweight"]
        numbers = unpacked(words, order).T if method == "awq" else unpacked(words.T)
        zero = unpacked(tensors["qzeros"], order).T + (config.get("checkpoint_format") == "gptq")
    zero = torch.as_tensor(zero).expand(-1 if torch.is_tensor(zero) else scale.shape[0], scale.shape[1])
    width = numbers.shape[1] // scale.shape[1]
    less = zero[: len(scale)].repeat_interleave(width, 1)
    return (numbers - less).float() * scale.float().repeat_interleave(width, 1)


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": False, "checkpoint_format": "gptq"}
AWQ: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": GROUP,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": None,
}
