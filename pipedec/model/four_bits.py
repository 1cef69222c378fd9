"""Weights in 4 bits as checkpoints store them, turned into one layout: a byte for two numbers of an output that follow
each other, the first in its lower half; and a float32 for each group, its scale, with its zero in the last four bits,
which scales of 16 bits leave empty. So a kernel has both with one load, of a size that devices copy in the background.

Where eight numbers lie in 32 bits, lowest first:

* compressed-tensors: eight inputs of an output; zeros, those of eight outputs.
  https://github.com/vllm-project/compressed-tensors, `pack_quantized`
* GPTQ: eight inputs of an output, of a transposed matrix; zeros, those of eight outputs, in its first format each less
  one. https://github.com/ModelCloud/GPTQModel
* AWQ: outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight, of a transposed matrix; zeros too.
  https://github.com/casper-hansen/AutoAWQ, `packing_utils`
"""

from __future__ import annotations

import torch

from pipedec.model.shape import PER_WORD
from pipedec.quantization import Packing

_MIDDLE, _MOST = 8, 15  # the zero of numbers that have none; the largest
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def repacked(packing: Packing, words: torch.Tensor) -> torch.Tensor:
    """The numbers of a weight: uint8 [out, in / 2] of int32, which may be the same memory."""
    if packing == "compressed-tensors":
        return words.contiguous().view(torch.uint8)
    if packing != "awq":
        return words.T.contiguous().view(torch.uint8)
    inputs, columns = words.shape
    made = words.new_empty((PER_WORD * columns, inputs // 2), dtype=torch.uint8)
    for place, output in enumerate(_AWQ_ORDER):
        numbers = _numbers(words, place)
        made[output::PER_WORD] = (numbers[::2] | numbers[1::2] << 4).T
    return made


def unpacked_zeros(packing: Packing, words: torch.Tensor, outputs: int) -> torch.Tensor:
    """The zeros of a weight: uint8 [out, groups]. Raises ValueError for one that programs read in two ways."""
    by_output = words if packing == "compressed-tensors" else words.T
    made = words.new_empty((PER_WORD * len(by_output), by_output.shape[1]), dtype=torch.uint8)
    for place, output in enumerate(_AWQ_ORDER if packing == "awq" else range(PER_WORD)):
        made[output::PER_WORD] = _numbers(by_output, place)
    made = made[:outputs].contiguous()
    if packing == "gptq":
        if bool((made == _MOST).any()):
            raise ValueError(f"holds zeros written as {_MOST}, which some programs read as 0 and some as {_MOST + 1}")
        made += 1
    return made


def is_in_order(order: torch.Tensor, groups: int) -> bool:
    """Whether the group of each input [in] is simply the next when one is full."""
    return torch.equal(order.cpu().long(), torch.arange(len(order)) // (len(order) // groups))


def joined(scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
    """Scales [out, groups] of any floating dtype with their zeros, 8 if there are none: float32 [out, groups]. Raises
    ValueError where a scale's last bits are not empty."""
    bits = scale.float().contiguous().view(torch.int32)
    if bool((bits & _MOST).any()):
        raise ValueError("holds scales that no F16 or BF16 holds")
    return (bits | (_MIDDLE if zero is None else zero.int())).view(torch.float32)


def separated(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 scales and float32 zeros, each [out, groups], of what `joined` made."""
    bits = scale.view(torch.int32)
    return (bits & ~_MOST).view(torch.float32), (bits & _MOST).float()


def halves(packed: torch.Tensor) -> torch.Tensor:
    """The numbers of [out, in / 2] bytes: uint8 [out, in]."""
    return torch.stack((packed & _MOST, packed >> 4), -1).flatten(1)


def _numbers(words: torch.Tensor, place: int) -> torch.Tensor:
    return (words >> (4 * place) & _MOST).to(torch.uint8)
