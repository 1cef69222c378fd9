"""The likeliest tokens of each row on CUDA devices: two Triton kernels that read the logits once.

The first looks at pieces of the vocabulary, the second puts a row's pieces together. torch.topk and logsumexp read all
six times, in two dozen launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PIECE = 4096  # tokens
_LOW = tl.constexpr(0x7FFFFFFF)  # of a key, below 32 bits that order as the number does: the token, inverted
_LEAST = tl.constexpr(-(1 << 63))


def likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (int64) and log-probabilities (float32), [rows, count], likeliest first, of float32 logits
    [rows, vocabulary], where `count` <= vocabulary; of equals the lower token. A NaN spoils its whole row."""
    rows, vocabulary = logits.shape
    pieces = triton.cdiv(vocabulary, PIECE)
    of_piece, of_row = sizes(pieces, count)
    keys = torch.empty(rows, pieces, count, dtype=torch.int64, device=logits.device)
    state = torch.empty(2, rows, pieces, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, count, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(rows, count, dtype=torch.float32, device=logits.device)
    if not rows:
        return tokens, logprobs
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _look_at_piece[(rows, pieces)](logits.contiguous(), keys, state, vocabulary, **of_piece)
        _join_row[(rows,)](keys, state, tokens, logprobs, pieces, **of_row)
    return tokens, logprobs


def sizes(pieces: int, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """How to launch either kernel, for so many pieces of PIECE tokens."""
    counts = {"COUNT": count, "PADDED": triton.next_power_of_2(count)}
    padded = {"PIECES": triton.next_power_of_2(pieces), "CANDIDATES": triton.next_power_of_2(pieces * count)}
    return {**counts, "PIECE": PIECE, "num_warps": 8}, {**counts, **padded, "num_warps": 4}


@triton.jit  # type: ignore[untyped-decorator]
def _look_at_piece(  # type: ignore[no-untyped-def]
    logits, keys, state, vocabulary, PIECE: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr
):
    """Of one row and piece: keys of the likeliest tokens, the largest logit, and the sum of exponentials beside it."""
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = piece * PIECE + tl.arange(0, PIECE)
    logit = tl.load(logits + row * vocabulary + token, mask=token < vocabulary, other=float("-inf"))
    top = tl.max(logit, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    place = row * tl.num_programs(1) + piece
    tl.store(state + place, top)
    tl.store(state + tl.num_programs(0) * tl.num_programs(1) + place, tl.sum(tl.exp(logit - base), 0))
    bits = logit.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ _LOW, bits).to(tl.int64)
    key = tl.where(token < vocabulary, (ordered << 32) + (token ^ _LOW), _LEAST)
    lane = tl.arange(0, PADDED)
    tl.store(keys + place * COUNT + lane, _largest(key, lane, COUNT), mask=lane < COUNT)


@triton.jit  # type: ignore[untyped-decorator]
def _join_row(  # type: ignore[no-untyped-def]
    keys,
    state,
    tokens,
    logprobs,
    pieces,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    PIECES: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """One row's tokens from the keys of its pieces, and what its logits are normalised by."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, PIECES)
    inside = piece < pieces
    tops = tl.load(state + row * pieces + piece, mask=inside, other=float("-inf"))
    sums = tl.load(state + (tl.num_programs(0) + row) * pieces + piece, mask=inside, other=0.0)
    base = tl.max(tops, 0)
    whole = base + tl.log(tl.sum(sums * tl.exp(tops - base), 0))
    candidate = tl.arange(0, CANDIDATES)
    key = tl.load(keys + row * pieces * COUNT + candidate, mask=candidate < pieces * COUNT, other=_LEAST)
    lane = tl.arange(0, PADDED)
    best = _largest(key, lane, COUNT)
    ordered = (best >> 32).to(tl.int32)
    logit = tl.where(ordered < 0, ordered ^ _LOW, ordered).to(tl.float32, bitcast=True)
    tl.store(tokens + row * COUNT + lane, (best ^ _LOW) & _LOW, mask=lane < COUNT)
    tl.store(logprobs + row * COUNT + lane, logit - whole, mask=lane < COUNT)


@triton.jit  # type: ignore[untyped-decorator]
def _largest(key, lane, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The `COUNT` largest of different keys, largest first."""
    found = tl.full(lane.shape, _LEAST, tl.int64)
    for at in range(COUNT):
        best = tl.max(key, 0)
        found = tl.where(lane == at, best, found)
        key = tl.where(key == best, _LEAST, key)
    return found
