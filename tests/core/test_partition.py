"""Layers to stages, against every possible division."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipedec.errors import ManifestError, ModelError
from pipedec.partition import estimate_costs, partition, split_layers
from pipedec.spec import DeploymentSpec, Span

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
}


def stage_costs(spans: tuple[Span, ...], costs: list[int], embed: int, head: int) -> list[int]:
    each = [sum(costs[start:end]) for start, end in spans]
    each[0] += embed
    each[-1] += head
    return each


costs_and_stages = st.lists(st.integers(0, 9), min_size=1, max_size=9).flatmap(
    lambda costs: st.tuples(st.just(costs), st.integers(1, len(costs)))
)


@settings(deadline=None)
@given(costs_and_stages, st.integers(0, 9), st.integers(0, 30))
def test_no_division_is_better(costs_and_stages: tuple[list[int], int], embed: int, head: int) -> None:
    costs, stages = costs_and_stages
    spans = partition(costs, stages, embed, head)

    assert [start for start, _ in spans] + [len(costs)] == [0] + [end for _, end in spans]
    assert len(spans) == stages
    assert all(start < end for start, end in spans)

    def rank(division: tuple[Span, ...]) -> tuple[int, int]:
        each = stage_costs(division, costs, embed, head)
        return max(each), sum(cost * cost for cost in each)

    every = (tuple(pairwise((0, *cuts, len(costs)))) for cuts in combinations(range(1, len(costs)), stages - 1))
    assert rank(spans) == min(map(rank, every))


@pytest.mark.parametrize("stages", [0, 4])
def test_an_impossible_number_of_stages_is_refused(stages: int) -> None:
    with pytest.raises(ValueError, match=f"3 layers cannot be divided into {stages} stages"):
        partition([1, 1, 1], stages)


def test_the_head_counts_on_the_last_stage() -> None:
    """SmolLM2's head reads 49152 x 576 parameters, as many as eight of its layers."""
    costs = estimate_costs(SMOLLM2)
    assert costs.layers == (2 * 576 * 64 * (9 + 3) + 3 * 576 * 1536,) * 30
    assert (costs.embed, costs.head) == (576, 49152 * 576)
    assert partition(costs.layers, 2, costs.embed, costs.head) == ((0, 19), (19, 30))


def test_experts_and_nested_configurations_are_counted() -> None:
    experts = SMOLLM2 | {"num_local_experts": 8, "moe_intermediate_size": 100}
    nested = estimate_costs({"text_config": experts})
    assert nested.layers[0] == 2 * 576 * 64 * (9 + 3) + 3 * 576 * 100 * 8
    with pytest.raises(ModelError, match=r"config\.json has no vocab_size"):
        estimate_costs({key: value for key, value in SMOLLM2.items() if key != "vocab_size"})


def spec(**pipeline: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": {"uri": "hf://a/b"}, "pipeline": pipeline}, strict=False)


def test_a_division_by_hand_is_taken_as_it_is() -> None:
    assert split_layers(spec(layers=("0-3", "4-29")), SMOLLM2) == ((0, 4), (4, 30))


@pytest.mark.parametrize(
    ("pipeline", "field", "words"),
    [
        ({"layers": ("0-3", "4-9")}, "spec.pipeline.layers[1]", "ends at layer 9, but the model has 30 layers"),
        ({"layers": ("0-3", "4-30")}, "spec.pipeline.layers[1]", "4-30 is beyond the model"),
        ({"layers": ("0-30", "31-40")}, "spec.pipeline.layers[0]", "The last layer is 29"),
        ({"stages": 31}, "spec.pipeline.stages", "is 31, but the model has 30 layers"),
    ],
)
def test_a_division_that_does_not_fit_the_model_is_refused(pipeline: Any, field: str, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        split_layers(spec(**pipeline), SMOLLM2)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_parameters_of_unlike_bits_are_counted_apart() -> None:
    attention = {"-:.*self_attn.*": {}, "+:.*mlp.*": {"group_size": 32}}
    gptq = {"quant_method": "gptq", "bits": 4, "dynamic": attention}
    plain, costs = estimate_costs(SMOLLM2), estimate_costs({**SMOLLM2, "quantization_config": gptq})
    mlp = 3 * SMOLLM2["hidden_size"] * SMOLLM2["intermediate_size"]
    assert costs.layers == plain.layers
    assert costs.four_bits[0] == mlp
    assert costs.in_bytes(2).layers[0] == 2 * (plain.layers[0] - mlp) + mlp // 2 + 4 * mlp // 32


def test_8_bit_parameters_are_counted_half() -> None:
    plain: dict[str, Any] = {**SMOLLM2}
    small = plain | {"quantization_config": {"quant_method": "fp8"}}
    costs = estimate_costs(small)
    assert costs.layers == estimate_costs(plain).layers == costs.eight_bits
    assert costs.four_bits == (0,) * len(costs.layers)
    assert costs.in_bytes(2).layers[0] * 2 == estimate_costs(plain).in_bytes(2).layers[0]
    (_, last), (_, last_small) = (split_layers(spec(stages=2), config) for config in (plain, small))
    assert last_small[1] - last_small[0] < last[1] - last[0]  # the head weighs more beside them
