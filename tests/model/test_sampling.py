"""The sampler against exact distributions and against transformers' own processors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipedec.errors import ModelError, ProtocolError, RequestError
from pipedec.model.sampling import Chosen, History, Wanted, choose, state_of, truncate, uniform
from pipedec.sampling_params import SamplingParams

VOCAB = 12
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2


def pick(params: SamplingParams, position: int = 0, logits: torch.Tensor = LOGITS, tokens: Sequence[int] = ()) -> int:
    return chosen(logits, params, position, history(params, tokens)).token


def chosen(logits: torch.Tensor, params: SamplingParams, position: int, history: History) -> Chosen:
    (choice,) = choose(logits[None], [Wanted(params, position, history)])
    if not isinstance(choice, Chosen):
        raise choice
    return choice


def history(params: SamplingParams, tokens: Sequence[int] = (), num_prompt: int = 0) -> History:
    built = History(params, num_prompt, VOCAB, "cpu")
    built.extend(tokens)
    return built


def splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1, logit_bias=((2, 1.5),)),
    ],
)
def test_tokens_follow_the_processed_distribution(params: SamplingParams) -> None:
    draws = 2000
    biased = LOGITS.clone()
    for token, bias in params.logit_bias:
        biased[token] += bias
    expected = truncate(biased / params.temperature, params).softmax(-1) * draws
    counts = torch.zeros(VOCAB)
    for token, count in Counter(pick(params, position) for position in range(draws)).items():
        counts[token] = count
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations


@pytest.mark.parametrize(
    ("params", "warper"),
    [
        (SamplingParams(temperature=1.0, top_k=4), TopKLogitsWarper(4)),
        (SamplingParams(temperature=1.0, top_p=0.7), TopPLogitsWarper(0.7)),
        (SamplingParams(temperature=1.0, top_p=1e-6), TopPLogitsWarper(1e-6)),
        (SamplingParams(temperature=1.0, min_p=0.2), MinPLogitsWarper(0.2)),
    ],
)
def test_truncation_keeps_what_transformers_keeps(params: SamplingParams, warper: LogitsProcessor) -> None:
    for seed in range(20):
        scores = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 3
        wanted = warper(torch.empty(1, 0, dtype=torch.int64), scores[None].clone())[0]
        assert torch.equal(truncate(scores, params), wanted)


def test_top_p_zero_leaves_the_likeliest() -> None:
    params = SamplingParams(temperature=100.0, top_p=0.0)
    assert {pick(params, position) for position in range(100)} == {int(LOGITS.argmax())}


def test_truncations_combine_in_transformers_order() -> None:
    params = SamplingParams(temperature=0.6, top_k=50, top_p=0.9, min_p=0.05)
    scores = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 3
    wanted = scores[None].clone()
    for warper in (TemperatureLogitsWarper(0.6), TopKLogitsWarper(50), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)):
        wanted = warper(torch.empty(1, 0, dtype=torch.int64), wanted)
    assert torch.equal(truncate(scores / params.temperature, params), wanted[0])


def test_no_truncation_looks_at_numbers_on_the_cpu() -> None:
    """Where they lie on a GPU, each look would wait for it; on the meta device there is nothing to look at."""
    params = SamplingParams(temperature=1.0, top_k=5, top_p=0.9, min_p=0.1)
    assert truncate(torch.empty(50, device="meta"), params).shape == (50,)


def test_repetition_penalty_is_that_of_transformers() -> None:
    params = SamplingParams(repetition_penalty=3.0)
    tokens = [*LOGITS.topk(4).indices.tolist(), 0, 0]
    processor = RepetitionPenaltyLogitsProcessor(3.0)
    wanted = processor(torch.tensor([tokens]), LOGITS[None].clone())[0]
    assert pick(params, tokens=tokens) == int(wanted.argmax())
    assert pick(params, tokens=tokens) != int(LOGITS.argmax())


def test_other_penalties_count_output_tokens_only() -> None:
    best, second = LOGITS.topk(2).indices.tolist()
    gap = float(LOGITS[best] - LOGITS[second])
    presence = SamplingParams(presence_penalty=2.0)
    frequency = SamplingParams(frequency_penalty=0.5)
    assert gap < 2.0
    assert chosen(LOGITS, presence, 0, history(presence, [best], num_prompt=1)).token == best
    assert chosen(LOGITS, presence, 0, history(presence, [0, best], num_prompt=1)).token == second
    needed = math.ceil(gap / 0.5)
    assert pick(frequency, tokens=[best] * (needed - 1)) == best
    assert pick(frequency, tokens=[best] * (needed + 1)) == second


def test_end_tokens_wait_for_min_tokens_and_biases_move_the_argmax() -> None:
    best, second, third = LOGITS.topk(3).indices.tolist()
    params = SamplingParams(min_tokens=2, end_tokens=(best,))
    assert [pick(params, tokens=[0] * count) for count in range(3)] == [second, second, best]
    assert pick(SamplingParams(logit_bias=((third, 100.0),))) == third


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert pick(SamplingParams(), logits=torch.tensor([0.0, 2.0, 2.0, 1.0] * 3)) == 1


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    def tokens(seed: int) -> list[int]:
        return [pick(SamplingParams(temperature=1.5, seed=seed), position) for position in range(40)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert len(set(tokens(7))) > 3


def test_noise_is_splitmix64_of_seed_position_and_token() -> None:
    seed, position = 2**63 - 1, 12345
    state = splitmix64(splitmix64(seed) + position * 0x9E3779B97F4A7C15)
    for token in (0, 1, 49151, 2**31 - 1):
        bits = splitmix64(state + token * 0x9E3779B97F4A7C15) >> 12
        assert float(uniform(state_of(seed, position), torch.tensor([token]))) == (bits + 0.5) * 2.0**-52


def test_noise_stays_inside_the_open_interval() -> None:
    values = uniform(state_of(0, 0), torch.arange(200_000))
    assert 0.0 < float(values.min()) < 1e-4
    assert 1.0 - 1e-4 < float(values.max()) < 1.0
    assert abs(float(values.mean()) - 0.5) < 0.002


def test_logprobs_are_of_the_unprocessed_logits() -> None:
    params = SamplingParams(temperature=0.5, top_k=1, logit_bias=((4, 50.0),), logprobs=3)
    token, logprobs = chosen(LOGITS, params, 0, history(params))
    exact = LOGITS.log_softmax(-1)
    assert token == 4
    assert logprobs is not None
    assert logprobs.logprob == float(exact[4])
    assert [t for t, _ in logprobs.top] == exact.topk(3).indices.tolist()
    assert [value for _, value in logprobs.top] == exact.topk(3).values.tolist()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_logits_that_are_not_numbers_are_refused(value: str) -> None:
    with pytest.raises(ModelError, match=f"the logits are {value}"):
        pick(SamplingParams(), logits=torch.tensor([0.0, float(value), 1.0] * 4))


extremes = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 5e-324, 1e-40, 1e-5, 1.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2**31 - 1]),
    top_p=st.sampled_from([0.0, 5e-324, 1e-40, 0.5, 1.0]),
    min_p=st.sampled_from([0.0, 5e-324, 1.0]),
    repetition_penalty=st.sampled_from([0.01, 1.0, 100.0]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    logit_bias=st.sampled_from([(), tuple((token, -100.0) for token in range(VOCAB))]),
    logprobs=st.sampled_from([None, 20]),
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(extremes, st.sampled_from([-1e6, -100.0, 0.0, 100.0, 1e6]))
def test_any_parameters_leave_a_token(params: SamplingParams, offset: float) -> None:
    """Whatever a client may write must not end a stage."""
    logits = torch.cat([LOGITS[:-2] + offset, torch.tensor([0.0, float("-inf")])])
    counts = history(params)
    counts.extend((1, 2, VOCAB - 2, VOCAB - 1))
    token, logprobs = chosen(logits, params, 3, counts)
    assert 0 <= token < VOCAB - 1
    assert logprobs is None or all(math.isfinite(value) for _, value in logprobs.top)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(extremes, min_size=2, max_size=5), st.integers(0, 2**16))
def test_company_changes_no_choice(asked: list[SamplingParams], seed: int) -> None:
    logits = torch.randn(len(asked), VOCAB, generator=torch.Generator().manual_seed(seed))
    logits[0, 3] = torch.nan
    wanted = [Wanted(params, position, history(params, [1, 2])) for position, params in enumerate(asked)]
    spoilt, *others = choose(logits, wanted)
    assert isinstance(spoilt, ModelError)
    assert others == [chosen(row, *each) for row, each in zip(logits[1:], wanted[1:], strict=True)]


def test_no_token_left_is_an_error_that_can_be_told() -> None:
    params = SamplingParams(temperature=1.0, min_tokens=1, end_tokens=tuple(range(VOCAB)))
    with pytest.raises(RequestError, match="no token is left"):
        pick(params)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ProtocolError, match="logit_bias"):
        history(SamplingParams(logit_bias=((VOCAB, 1.0),)))
