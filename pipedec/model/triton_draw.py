"""A token of each row by the Gumbel-max trick, on CUDA devices: one Triton kernel makes the noise and finds the best.

With torch's operators the noise alone, a hash in 64 bits and two logarithms, takes some thirty launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipedec.model.sampling import GOLDEN, MIX_1, MIX_2

PIECE = 1024  # tokens of a program
_GOLDEN, _MIX_1, _MIX_2 = tl.constexpr(GOLDEN), tl.constexpr(MIX_1), tl.constexpr(MIX_2)
_UNIT = tl.constexpr(2.0**-52)


def draw(scores: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best perturbed score of each row, float64, and its token, int64, the lowest of equals. Scores are float32
    [rows, V], one or more; states int64 [rows]: what seed and position hash to."""
    rows, vocabulary = scores.shape
    pieces = triton.cdiv(vocabulary, PIECE)
    values = torch.empty(rows, pieces, dtype=torch.float64, device=scores.device)
    tokens = torch.empty(rows, pieces, dtype=torch.int64, device=scores.device)
    with torch.cuda.device_of(scores):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _draw_of_piece[(rows, pieces)](
            scores.contiguous(), states, values, tokens, vocabulary, PIECE=PIECE, num_warps=4
        )
    best = values.max(-1)  # the first of equals
    return best.values, tokens.gather(1, best.indices[:, None])[:, 0]


@triton.jit  # type: ignore[untyped-decorator]
def _draw_of_piece(scores, states, values, tokens, vocabulary, PIECE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of one row and piece: score + noise, the best and where it is."""
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = piece * PIECE + tl.arange(0, PIECE)
    score = tl.load(scores + row * vocabulary + token, mask=token < vocabulary, other=float("-inf"))
    word = token.to(tl.uint64) * _GOLDEN + tl.load(states + row).to(tl.uint64, bitcast=True)
    word += _GOLDEN
    word = (word ^ (word >> 30)) * _MIX_1
    word = (word ^ (word >> 27)) * _MIX_2
    bits = (word ^ (word >> 31)) >> 12
    uniform = (bits.to(tl.float64) + 0.5) * _UNIT
    perturbed = score.to(tl.float64) - tl.log(-tl.log(uniform))
    best, index = tl.max(perturbed, 0, return_indices=True, return_indices_tie_break_left=True)
    place = row * tl.num_programs(1) + piece
    tl.store(values + place, best)
    tl.store(tokens + place, piece.to(tl.int64) * PIECE + index)
