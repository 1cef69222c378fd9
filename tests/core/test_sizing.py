"""Estimates of size and speed: arithmetic that can be done by hand, and what must hold of any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedec.errors import ModelError, PipeDecError
from pipedec.sizing import GPUS, POLICIES, ModelSize, Wish, find_gpu, least_stages, option, recommended_stages
from pipedec.sizing.gpus import GIB
from pipedec.sizing.memory import kv_slots, stage_needs
from pipedec.sizing.reference import LLAMA_1B, LLAMA_70B
from pipedec.sizing.speed import measured, speed_up, step_seconds
from pipedec.spec import DeploymentSpec
from tests.quantised import FORMS, pack_quantized

L4 = find_gpu("L4")
WISH = Wish(ModelSize.of(LLAMA_70B), ModelSize.of(LLAMA_1B), L4, "bfloat16", 8192, 4)
AGREEMENTS = ("0.4", "0.5", "0.65", "0.76", "0.9", "0.95")


def test_parameters_are_those_of_the_model_cards() -> None:
    assert WISH.model.parameters == pytest.approx(70.55e9, rel=0.001)
    assert WISH.draft is not None
    assert WISH.draft.parameters == pytest.approx(1.236e9, rel=0.001)


def test_all_stages_together_hold_the_model() -> None:
    for stages in (1, 3, 14, 80):
        spans = WISH.model.split(stages)
        assert sum(WISH.model.held(span) for span in spans) == WISH.model.parameters
        read = sum(WISH.model.read(span) for span in spans)
        assert read == WISH.model.parameters - WISH.model.table_parameters


def test_a_tied_table_is_held_once_where_both_ends_meet() -> None:
    draft = WISH.draft
    assert draft is not None
    assert draft.held((0, 16)) == draft.parameters
    assert draft.held((0, 8)) + draft.held((8, 16)) == draft.parameters + draft.table_parameters


def test_kv_slots_are_those_of_the_manifest() -> None:
    spec = DeploymentSpec.model_validate_json(
        '{"model": {"uri": "file:///m"}, "draft": {"targetLayers": 2}, "pipeline": {"stages": 14},'
        ' "serving": {"maxSequences": 4, "maxContext": 8192}}'
    )
    assert kv_slots(14, 4, 8192) == spec.kv_slots(131072)


def test_kv_of_a_stage_by_hand() -> None:
    needs = stage_needs(WISH.model, 80, 1, 1024, 2)
    assert needs[40].kv == (1024 + 81 * 64) * 2 * 8 * 128 * 2  # slots x (K and V) x heads x head_dim x bytes


def test_a_step_by_hand() -> None:
    model, span = WISH.model, (8, 16)
    kv = 4096 * 2 * 8 * 128 * 8
    read = (sum(model.costs.layers[8:16]) + kv) * 2
    assert step_seconds(model, span, 1, L4, 8192, 2) == pytest.approx(read / (0.8 * 300e9))
    many = 2 * 4096 * (sum(model.costs.layers[8:16]) + 8192 * 8192 * 8) / (0.5 * 121e12)
    assert step_seconds(model, span, 4096, L4, 8192, 2) == pytest.approx(many)
    tiny = ModelSize.of(LLAMA_1B | {"hidden_size": 64, "head_dim": 2, "intermediate_size": 64, "vocab_size": 300})
    assert step_seconds(tiny, (0, 10), 1, L4, 128, 2) == pytest.approx(10 * 150e-6)


@pytest.mark.parametrize(("gpu", "least"), [("T4", 12), ("L4", 8), ("A10", 8), ("4090", 8), ("H100", 3)])
def test_seventy_billion_parameters_need_so_many(gpu: str, least: int) -> None:
    wish = replace(WISH, gpu=find_gpu(gpu))
    assert least_stages(wish) == least
    assert 141e9 / (0.9 * wish.gpu.memory * GIB) < least  # never fewer than the weights alone ask for
    assert recommended_stages(wish) >= least
    fewer = stage_needs(wish.model, least - 1, wish.sequences, wish.context, wish.width)
    assert max(need.total for need in fewer) > wish.gpu.usable_bytes


def test_more_context_needs_more_stages() -> None:
    counts = [least_stages(replace(WISH, context=context)) for context in (2048, 8192, 32768)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_what_cannot_fit_is_said() -> None:
    with pytest.raises(PipeDecError, match=r"even one of 64 stages needs .* lower --context"):
        least_stages(replace(WISH, context=131072, sequences=200))
    with pytest.raises(PipeDecError, match=r"the draft needs .* choose a smaller draft"):
        least_stages(replace(WISH, draft=WISH.model))


def test_rates_follow_from_step_and_speed_up() -> None:
    found = option(WISH, 8)
    assert found.draft_seconds is not None
    gain = speed_up("adaptive", 8, 0.76, found.draft_seconds / found.step_seconds)
    assert gain is not None
    assert found.tokens_per_second["adaptive"] == pytest.approx(gain / (8 * found.step_seconds))
    assert found.tokens_per_second["none"] == pytest.approx(1 / (8 * found.step_seconds), rel=0.01)
    assert option(replace(WISH, draft=None), 8).tokens_per_second["adaptive"] is None


def test_the_table_is_whole() -> None:
    table = measured()
    assert table["source"].startswith("python -m benchmarks.sizing")
    rows = {(d, s): by for d, stages in table["draft_time"].items() for s, by in stages.items()}
    fast = min(table["draft_time"], key=float)
    for (draft_time, _), by_agreement in rows.items():
        assert tuple(by_agreement) == (AGREEMENTS if draft_time == fast else ("0.76",))
        assert all(row.keys() == set(POLICIES) for row in by_agreement.values())
    assert len(rows) == len(table["draft_time"]) * len({stages for _, stages in rows})


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "none"])
def test_measured_points_are_met_exactly(policy: Any) -> None:
    for draft_time, by_stages in measured()["draft_time"].items():
        for stages, by_agreement in by_stages.items():
            for agreement, row in by_agreement.items():
                found = speed_up(policy, int(stages), float(agreement), float(draft_time))
                assert found == pytest.approx(row[policy])


@given(st.integers(1, 30), st.floats(0.4, 0.95), st.floats(0.01, max(map(float, measured()["draft_time"]))))
def test_between_points_nothing_is_outside_what_was_measured(stages: int, agreement: float, draft_time: float) -> None:
    found = speed_up("adaptive", stages, agreement, draft_time)
    best = measured()["draft_time"]["0.25"]["20"]["0.95"]["adaptive"]
    assert found is not None
    assert 1 <= found <= best + 1e-9


def test_a_better_draft_and_more_stages_are_faster_and_a_slower_draft_is_not() -> None:
    def adaptive(stages: int, agreement: float, draft_time: float) -> float:
        found = speed_up("adaptive", stages, agreement, draft_time)
        assert found is not None
        return found

    for stages in (1, 3, 8, 17):
        assert adaptive(stages, 0.6, 0.25) < adaptive(stages, 0.7, 0.25) < adaptive(stages, 0.85, 0.25)
        assert adaptive(stages, 0.7, 0.1) == adaptive(stages, 0.7, 0.25)
        assert adaptive(stages, 0.7, 0.25) > adaptive(stages, 0.7, 0.4) > adaptive(stages, 0.7, 1.0)
        assert adaptive(stages, 0.7, 0.4) < adaptive(stages + 1, 0.7, 0.4)


def test_beyond_what_was_measured_nothing_is_claimed() -> None:
    assert speed_up("adaptive", 8, 0.76, 1.01) is None
    with pytest.raises(PipeDecError, match=r"--agreement 0\.99: was measured from 0\.4 to 0\.95"):
        speed_up("adaptive", 8, 0.99, 0.25)


def test_gpus_are_found_in_any_spelling() -> None:
    assert find_gpu("rtx 4090") == find_gpu("4090") == find_gpu("RTX4090")
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    with pytest.raises(PipeDecError, match=r"did you mean L40S\?"):
        find_gpu("L40X")


FP8 = LLAMA_70B | {"quantization_config": FORMS["fp8-block"][0]}


def test_8_bit_weights_take_a_byte_and_head_and_embedding_what_they_took() -> None:
    plain, small = WISH.model, ModelSize.of(FP8)
    assert small.bits == (8,)
    assert plain.bits == ()
    assert small.parameters == plain.parameters
    for width in (2, 4):
        span = (8, 16)
        assert small.held_bytes(span, width) == small.read_bytes(span, width) == sum(plain.costs.layers[8:16])
        assert plain.held_bytes(span, width) == width * plain.held(span)
        assert small.held_bytes((0, 80), width) == sum(plain.costs.layers) + 2 * width * plain.table_parameters
        assert small.read_bytes((0, 80), width) == sum(plain.costs.layers) + width * plain.costs.head


def test_8_bit_weights_need_about_half_the_stages_and_time() -> None:
    small = replace(WISH, model=ModelSize.of(FP8))
    assert (least_stages(WISH), least_stages(small)) == (8, 5)
    kv = 4096 * 2 * 8 * 128 * 8 * 2
    read = sum(small.model.costs.layers[8:16]) + kv
    assert step_seconds(small.model, (8, 16), 1, L4, 8192, 2) == pytest.approx(read / (0.8 * 300e9))


def test_4_bit_weights_take_half_a_byte_and_a_word_for_each_group() -> None:
    plain, small = WISH.model, ModelSize.of(LLAMA_70B | {"quantization_config": pack_quantized(128)})
    assert small.bits == (4,)
    assert small.parameters == plain.parameters
    held = sum(plain.costs.layers[8:16])
    for width in (2, 4):
        assert small.held_bytes((8, 16), width) == small.read_bytes((8, 16), width) == held // 2 + 4 * held // 128
    channel = ModelSize.of(LLAMA_70B | {"quantization_config": pack_quantized(None)})
    assert channel.held_bytes((8, 16), 2) == held // 2
    assert least_stages(replace(WISH, model=small)) == 3


def test_prefill_makes_a_piece_of_8_bit_weights_what_it_stands_for() -> None:
    plain, small = (stage_needs(model, 80, 1, 1024, 2)[40] for model in (WISH.model, ModelSize.of(FP8)))
    assert small.workspace - plain.workspace == 2 * (1 << 27)


def test_only_layers_that_are_quantised_count_so() -> None:
    only = FORMS["float-channel"][0] | {"ignore": ["lm_head", "re:.*self_attn.*", r"re:model\.layers\.0\..*"]}
    costs = ModelSize.of(LLAMA_70B | {"quantization_config": only}).costs
    assert costs.eight_bits == (0, *[3 * 8192 * 28672] * 79)


def test_models_that_are_quantised_otherwise_are_refused() -> None:
    with pytest.raises(ModelError, match=r"quant_method` is 'hqq'; checkpoints quantised so are not run"):
        ModelSize.of(LLAMA_70B | {"quantization_config": {"quant_method": "hqq"}})
