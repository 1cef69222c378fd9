"""A model with 4-bit weights is the plain model whose weights are the numbers, less their zeros, times their scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipedec.errors import ModelError
from pipedec.model.four_bits import joined, separated
from pipedec.model.loader import SpanModel
from pipedec.model.quantized import QuantizedLinear, linear_weight
from pipedec.model.shape import model_shape
from tests.exactness.pipelines import expected, load, run
from tests.four_bits import gptq
from tests.model.pipeline import Chain, Decoder, scattered
from tests.model.test_quantised import PROMPT, QUERY, Damage, edit, edit_config, no_config, parameters
from tests.quantised import FOUR_BITS, plain, quantised
from tests.tiny import reference_greedy, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five groups of 32 numbers, and eight of outputs."""
    return tiny_model(tmp_path_factory.mktemp("model"), hidden=160, layers=2, intermediate_size=320, spread=0.1)


@pytest.mark.parametrize("form", FOUR_BITS)
def test_weights_are_what_they_stand_for_made_at_load_or_kept(model: Path, tmp_path: Path, form: str) -> None:
    folder = quantised(model, tmp_path / "quantised", form)
    for dtype in (torch.float32, torch.bfloat16):
        made = SpanModel.load(folder, (0, 2), dtype=dtype)
        twin = SpanModel.load(plain(folder, tmp_path / str(dtype), dtype), (0, 2), dtype=dtype)
        loaded, wanted = parameters(made), parameters(twin)
        assert loaded.keys() == wanted.keys()
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
    kept = SpanModel.load(folder, (0, 2), dtype=dtype, keep_quantized=True)
    rows = torch.randn(5, 160, generator=torch.Generator().manual_seed(0)).to(dtype)
    for layer, plain_layer in zip(kept.layers, twin.layers, strict=True):
        small, large = layer.mlp.up_proj, plain_layer.mlp.up_proj
        assert isinstance(small, QuantizedLinear)
        assert small.weight.numel() * small.weight.element_size() * 2 == large.weight.numel()
        assert torch.equal(small(rows), large(rows))
        assert torch.equal(linear_weight(small, 7), large.weight[:7])


@pytest.mark.parametrize("form", ["pack-group", "gptq", "awq"])
def test_a_pipeline_says_what_the_plain_model_says(model: Path, tmp_path: Path, form: str) -> None:
    folder, requests = quantised(model, tmp_path / "quantised", form), load(2, seed=1)
    twin = plain(folder, tmp_path / "plain", torch.float32)
    assert run(folder, "adaptive", 2, "right", requests) == expected(twin, requests)


def test_a_4_bit_draft_is_one_like_any_other(model: Path, tmp_path: Path) -> None:
    folder = quantised(model, tmp_path / "quantised", "awq")
    decoder = Decoder(Chain(folder, (0, 2)), 1, PROMPT, scattered())
    decoder.prefill(64)
    assert decoder.generate(8) == reference_greedy(plain(folder, tmp_path / "plain", torch.float32), PROMPT, 8)


@pytest.mark.parametrize("keep", [False, True])
def test_a_head_may_be_in_4_bits_and_lent_to_a_draft(model: Path, tmp_path: Path, keep: bool) -> None:
    target = quantised(model, tmp_path / "target", "gptq", r".*(_proj|lm_head)\.weight", lm_head=True)
    whole = SpanModel.load(target, (0, 2), dtype=torch.float32)
    draft = quantised(model, tmp_path / "draft", "pack-group")
    edit(lambda tensors: [tensors.pop(name) for name in list(tensors) if "lm_head" in name or "embed" in name])(draft)
    lent = SpanModel.load(draft, (0, 2), dtype=torch.float32, ends=target, keep_quantized=keep)
    rows = torch.randn(3, 160, generator=torch.Generator().manual_seed(0))
    assert isinstance(lent.architecture.lm_head, QuantizedLinear) == keep
    assert torch.equal(lent.architecture.lm_head(rows), whole.architecture.lm_head(rows))


@pytest.mark.parametrize("form", FOUR_BITS)
def test_sizes_are_those_of_the_plain_model(model: Path, tmp_path: Path, form: str) -> None:
    assert model_shape(quantised(model, tmp_path / "quantised", form)) == model_shape(model)


def test_scale_and_zero_of_a_group_are_one_word() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
        scale = every[every.isfinite()].reshape(-1, 2)
        zero = torch.randint(0, 16, scale.shape, dtype=torch.uint8)
        got, less = separated(joined(scale, zero))
        assert torch.equal(got, scale.float())
        assert torch.equal(less, zero.float())
    assert torch.equal(separated(joined(scale, None))[1], torch.full(scale.shape, 8.0))


def reordered(name: str) -> Damage:
    return edit(lambda tensors: tensors.update({name: torch.arange(160).flip(0).int() // 32}))


def fill(name: str, value: float) -> Damage:
    return edit(lambda tensors: tensors[name].fill_(value))


def another(name: str, tensor: torch.Tensor) -> Damage:
    return edit(lambda tensors: tensors.update({name: tensor}))


def lacking(name: str) -> Damage:
    return edit(lambda tensors: tensors.pop(name))


def quantise_embedding(tensors: dict[str, torch.Tensor]) -> None:
    stored = gptq(32, less=1)(tensors.pop("model.embed_tokens.weight").float())
    tensors |= {f"model.embed_tokens.{name}": tensor for name, tensor in stored.items()}


DAMAGE: list[tuple[str, str, Damage]] = [
    (r"g_idx': numbers of a group do not follow each other \(desc_act", "gptq", reordered(f"{QUERY}.g_idx")),
    (r"weight_g_idx': numbers of a group do not", "pack-zeros", reordered(f"{QUERY}.weight_g_idx")),
    (
        r"weight_zero_point': its numbers are asymmetric",
        "pack-group",
        another(f"{QUERY}.weight_zero_point", torch.ones(1)),
    ),
    (r"is I32, but config\.json has no `quantization_config`", "gptq", no_config),
    (r"q_proj.qweight' is I32, by the .* it is not quantised", "awq", edit_config(modules_to_not_convert=["q_proj"])),
    (r"q_proj.qweight' is I32, by the .* it is not quantised", "gptq", edit_config(dynamic={"-:.*q_proj": {}})),
    (r"called 'weight_packed'", "awq", edit_config(**FOUR_BITS["pack-group"][0])),
    (
        r"a matrix in F8_E4M3 and called 'weight'",
        "awq",
        edit_config(quant_method="fp8", modules_to_not_convert=["lm_head"]),
    ),
    (r"q_proj.scales' is missing", "awq", lacking(f"{QUERY}.scales")),
    (r"q_proj.qzeros' is missing", "gptq", lacking(f"{QUERY}.qzeros")),
    (r"q_proj.weight_zero_point' is missing", "pack-zeros", lacking(f"{QUERY}.weight_zero_point")),
    (
        r"qzeros' has shape \(1, 20\), config.json asks for \(5, 20\)",
        "gptq",
        another(f"{QUERY}.qzeros", torch.ones(1, 20).int()),
    ),
    (r"weight_scale' is I32; scales are", "pack-group", another(f"{QUERY}.weight_scale", torch.ones(160, 5).int())),
    (
        r"weight_zero_point' is I8; expected is I32",
        "pack-zeros",
        another(f"{QUERY}.weight_zero_point", torch.ones(160, 5).to(torch.int8)),
    ),
    (r"has 320 inputs, which groups of 128 do not divide", "gptq", edit_config(group_size=128)),
    (r"q_proj.qweight' or its .*scales' holds NaN", "awq", fill(f"{QUERY}.scales", float("nan"))),
    (r"scales of 256 and more", "pack-channel", fill(f"{QUERY}.weight_scale", 300.0)),
    (r"scales' holds scales that no F16 or BF16 holds", "awq", another(f"{QUERY}.scales", torch.full((5, 160), 0.1))),
    (r"qzeros' holds zeros written as 15, which some", "gptq", fill(f"{QUERY}.qzeros", -1)),
    (r"embed_tokens.qweight' is quantised, but is no linear", "gptq", edit(quantise_embedding)),
]


@pytest.mark.parametrize(("problem", "form", "damage"), DAMAGE, ids=[problem for problem, *_ in DAMAGE])
def test_a_damaged_checkpoint_is_refused_with_tensor_and_reason(
    model: Path, tmp_path: Path, problem: str, form: str, damage: Damage
) -> None:
    folder = quantised(model, tmp_path / "quantised", form)
    damage(folder)
    for keep in (False, True):
        with pytest.raises(ModelError, match=problem):
            SpanModel.load(folder, (0, 2), dtype=torch.float32, keep_quantized=keep)


def test_scales_in_f32_that_f16_holds_too_are_run(model: Path, tmp_path: Path) -> None:
    folder = quantised(model, tmp_path / "quantised", "awq")
    wanted = parameters(SpanModel.load(folder, (0, 2), dtype=torch.float32))
    edit(lambda tensors: tensors.update({name: t.float() for name, t in tensors.items() if "scales" in name}))(folder)
    got: dict[str, Any] = parameters(SpanModel.load(folder, (0, 2), dtype=torch.float32))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "awq"
