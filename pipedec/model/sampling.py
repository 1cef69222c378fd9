"""The next tokens from rows of logits.

A token is drawn with the Gumbel-max trick: argmax of logit + noise, where the noise of token v is a hash of (seed,
position, v). So the draw depends on nothing else: not on batch, policy, stages or faults. Processing follows
`SamplingParams`; top-k, top-p and min-p mean what they mean in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from pipedec.errors import ModelError, ProtocolError, RequestError
from pipedec.model.grammar import Matcher
from pipedec.model.staging import sent
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import TokenLogprobs

LEAST_LOGPROB = -9999.0  # of a token that is impossible: JSON has no infinity

_WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15  # splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators"
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class History:
    """The tokens of one request so far, as its sampling parameters need them: counts only if there are penalties, and
    where the output is in its grammar if it has one."""

    def __init__(
        self,
        params: SamplingParams,
        num_prompt: int,
        vocab_size: int,
        device: torch.device | str,
        matcher: Matcher | None = None,
    ) -> None:
        named = (*(token for token, _ in params.logit_bias), *params.end_tokens)
        if any(not 0 <= token < vocab_size for token in named):
            raise ProtocolError(f"logit_bias and end_tokens name tokens in [0, {vocab_size})")
        self.num_tokens = 0
        self._num_prompt = num_prompt
        self.matcher = matcher
        self.seen: torch.Tensor | None = None  # bool [V], of prompt and output
        self.counts: torch.Tensor | None = None  # float32 [V], of output
        if params.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        if params.frequency_penalty or params.presence_penalty:
            self.counts = torch.zeros(vocab_size, device=device)

    @property
    def num_output(self) -> int:
        return max(0, self.num_tokens - self._num_prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens follow; the first `num_prompt` of all are the prompt, the others are output."""
        output = tokens[max(0, self._num_prompt - self.num_tokens) :]
        self.num_tokens += len(tokens)
        if self.seen is not None:
            self.seen.index_fill_(0, sent(torch.tensor(tokens, dtype=torch.int64), self.seen.device), True)
        if self.matcher is not None:
            self.matcher.consume(output)
        if self.counts is not None and output:
            index = sent(torch.tensor(output, dtype=torch.int64), self.counts.device)
            self.counts.index_add_(0, index, torch.ones_like(index, dtype=torch.float32))


class Wanted(NamedTuple):
    """The token at `position` of a request."""

    params: SamplingParams
    position: int
    history: History


class Chosen(NamedTuple):
    """A token, and its log-probabilities if they were asked for."""

    token: int
    logprobs: TokenLogprobs | None


Choice: TypeAlias = Chosen | ModelError | RequestError


@torch.inference_mode()
def choose(logits: torch.Tensor, wanted: Sequence[Wanted]) -> list[Choice]:
    """A token for each of the float32 logits [rows, V] of the rows before them, or what is wrong: a `ModelError` where
    the logits are not numbers, a `RequestError` where what the request demands leaves no token to choose. A GPU is
    waited for once, for all rows."""
    allowed = _allowed(wanted, logits.device)
    best = logits.max(-1)  # the first of equals
    tops, values, tokens = (part.double() for part in (best.values, best.values, best.indices))
    drawn: list[tuple[int, torch.Tensor, int]] = []
    for row, (params, position, history) in enumerate(wanted):
        unprocessed = logits[row]
        scores = _penalised(unprocessed, params, history)
        if (possible := allowed.get(row)) is not None:
            scores = scores.masked_fill(~possible, float("-inf"))
        if not params.greedy:
            drawn.append((row, truncate(scores / params.temperature, params), state_of(params.seed, position)))
        elif scores is not unprocessed:
            values[row], tokens[row] = scores.max(0)
    if drawn:
        rows, of_rows, states = zip(*drawn, strict=True)
        index = sent(torch.tensor(rows), logits.device)
        values[index], tokens[index] = _draw(torch.stack(of_rows), states)
    looked_at = torch.stack([tops, values, tokens], 1).tolist()
    return [_choice(logits[row], each, *looked_at[row]) for row, each in enumerate(wanted)]


def _allowed(wanted: Sequence[Wanted], device: torch.device) -> dict[int, torch.Tensor]:
    """Of the rows that a grammar has a say in: which tokens it allows, [V]. One copy to the device."""
    matchers = ((row, each.history.matcher) for row, each in enumerate(wanted))
    rows = {row: each for row, matcher in matchers if matcher is not None and (each := matcher.allowed()) is not None}
    if not rows:
        return {}
    return dict(zip(rows, sent(torch.from_numpy(np.stack(list(rows.values()))), device), strict=True))


def _choice(logits: torch.Tensor, wanted: Wanted, top: float, value: float, token: float) -> Choice:
    params, matcher = wanted.params, wanted.history.matcher
    if not math.isfinite(top):
        return ModelError(f"the logits are {top}: the model overflows in this dtype")
    if value == -math.inf and matcher is not None:
        reason = matcher.error or "the model has no token that it allows"
        return RequestError(f"the answer's grammar cannot be followed any further: {reason}")
    if value == -math.inf:
        return RequestError("no token is left to choose: all are end tokens, which min_tokens excludes")
    return Chosen(int(token), None if params.logprobs is None else _logprobs(logits, int(token), params.logprobs))


def truncate(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Scores [V] with -inf where top-k, top-p or min-p exclude a token."""
    if 0 < params.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(params.top_k).values[-1], float("-inf"))
    if params.top_p < 1.0:
        ordered, tokens = scores.sort(descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1)
        before[0] = -1.0  # the likeliest always stays, also where `top_p` is 0, or is in float32
        excluded = torch.empty_like(before, dtype=torch.bool).scatter_(0, tokens, before >= params.top_p)
        scores = scores.masked_fill(excluded, float("-inf"))
    if params.min_p > 0.0:
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(probabilities < params.min_p * probabilities.max(), float("-inf"))
    return scores


def state_of(seed: int, position: int) -> int:
    """What `uniform` hashes with tokens."""
    return _mix(_mix(seed) + position * GOLDEN)


def uniform(state: int, tokens: torch.Tensor) -> torch.Tensor:
    """Numbers in (0, 1), float64, each a hash of (seed, position, token id); the same on every device.

    52 of the hash's bits are used: with 53, the largest would round to 1.
    """
    bits = _shifted(_mix_tensor(tokens * _signed(GOLDEN) + _signed(state)), 12)
    return (bits.double() + 0.5) * 2.0**-52


def _penalised(logits: torch.Tensor, params: SamplingParams, history: History) -> torch.Tensor:
    scores = logits
    if params.end_tokens and history.num_output < params.min_tokens:
        scores = scores.index_fill(0, sent(torch.tensor(params.end_tokens), scores.device), float("-inf"))
    if params.logit_bias:
        tokens, biases = zip(*params.logit_bias, strict=True)
        index = sent(torch.tensor(tokens), scores.device)
        scores = scores.index_add(0, index, sent(torch.tensor(biases), scores.device))
    if history.seen is not None:
        penalty = params.repetition_penalty
        penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
        scores = torch.where(history.seen, penalised, scores)
    if history.counts is not None:
        counts = history.counts
        scores = scores - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
    return scores


def _draw(scores: torch.Tensor, states: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The best score [rows] with Gumbel noise, float64, and its token, likewise."""
    if scores.is_cuda:
        from pipedec.model.triton_draw import draw  # Triton is not installed where it is of no use

        hashed = sent(torch.tensor([_signed(state) for state in states]), scores.device)
        values, tokens = draw(scores, hashed)
        return values, tokens.double()
    best = [perturbed(row, state).max(0) for row, state in zip(scores, states, strict=True)]
    return torch.stack([each.values for each in best]), torch.stack([each.indices for each in best]).double()


def perturbed(scores: torch.Tensor, state: int) -> torch.Tensor:
    """Scores [V] with Gumbel noise, float64, which is made for the possible tokens only."""
    tokens = torch.arange(len(scores), device=scores.device)[scores > float("-inf")]
    gumbel = -torch.log(-torch.log(uniform(state, tokens)))
    noisy = torch.full_like(scores, float("-inf"), dtype=torch.float64)
    return noisy.index_copy_(0, tokens, scores[tokens].double() + gumbel)


def _logprobs(logits: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs = logits.log_softmax(-1).clamp(min=LEAST_LOGPROB)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return TokenLogprobs(float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def _mix(state: int) -> int:
    state = (state + GOLDEN) % _WORD
    state = (state ^ (state >> 30)) * MIX_1 % _WORD
    state = (state ^ (state >> 27)) * MIX_2 % _WORD
    return state ^ (state >> 31)


def _mix_tensor(state: torch.Tensor) -> torch.Tensor:
    """The same on int64 tensors, whose multiplication wraps as that of uint64 does."""
    state = state + _signed(GOLDEN)
    state = (state ^ _shifted(state, 30)) * _signed(MIX_1)
    state = (state ^ _shifted(state, 27)) * _signed(MIX_2)
    return state ^ _shifted(state, 31)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift right; torch's own keeps the sign."""
    shifted: torch.Tensor = (value >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word
