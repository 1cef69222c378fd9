"""What a family does differently is refused; what is accepted equals generate()."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from pipedec.errors import ModelError
from pipedec.model.loader import SpanModel
from tests.model.pipeline import Chain, Decoder, scattered
from tests.tiny import reference_greedy, tiny_model

PROMPT = tuple(range(7, 47))

ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("apertus", {}),
    ("arcee", {}),
    ("ernie4_5", {}),
    ("exaone4", {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    ("granite", {}),
    ("internlm3", {}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
    ("ministral3", {}),
    ("mistral", {"sliding_window": 7}),
    ("nemotron", {}),
    ("olmo3", {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    ("phi", {}),
    ("seed_oss", {}),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
]

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma2", {}, "embed_scale"),
    ("gpt_oss", {}, "an argument that is not run: 's_aux'"),
    ("granite", {"embedding_multiplier": 12.0}, "the embedding is scaled"),
    ("granite", {"logits_scaling": 8.0}, "LM head: .*logits are scaled"),
    ("cohere", {}, "LM head: .*logits are scaled"),
    ("cohere2", {}, "LM head: .*logits are scaled"),
    ("diffllama", {}, "layer 0: differs"),
    ("doge", {}, "layer 0: needs more"),
    ("falcon", {"alibi": True}, "transformers' own forward fails|needs more|not in the usual"),
    ("gpt_neox", {}, "missing from the checkpoint"),
    ("biogpt", {}, "embed_positions"),
    ("olmo", {}, "one final norm"),
    ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}, "layers of type 'conv'"),
    ("mamba", {}, "linear_attention"),
    ("mixtral", {"num_local_experts": 2}, "missing from the checkpoint"),
]


@pytest.mark.parametrize(("family", "config"), ACCEPTED)
def test_an_accepted_family_equals_generate(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    folder = tiny_model(tmp_path, family, **config)
    decoder = Decoder(Chain(folder, (0, 1, 4)), 1, PROMPT, scattered())
    decoder.prefill(16)
    assert decoder.generate(12) == reference_greedy(folder, PROMPT, 12)


@pytest.mark.parametrize(("family", "config", "reason"), REFUSED)
def test_a_family_that_would_be_wrong_is_refused(
    tmp_path: Path, family: str, config: dict[str, Any], reason: str
) -> None:
    folder = tiny_model(tmp_path, family, **config)
    with pytest.raises(ModelError, match=reason):
        SpanModel.load(folder, (0, 4), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
def test_low_precision_raises_no_false_alarm(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = tiny_model(tmp_path, family, hidden=256, layers=2)
    assert SpanModel.load(folder, (0, 2), dtype=dtype).dtype == dtype


def altered_layer(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    original = LlamaDecoderLayer.forward

    @wraps(original)
    def altered(self: nn.Module, hidden: torch.Tensor, **rest: Any) -> torch.Tensor:
        changed: torch.Tensor = change(original, self, hidden, rest)
        return changed

    monkeypatch.setattr(LlamaDecoderLayer, "forward", altered)


def mixes_rows(original: Any, layer: nn.Module, hidden: torch.Tensor, rest: dict[str, Any]) -> torch.Tensor:
    output: torch.Tensor = original(layer, hidden, **rest)
    return output + 0.01 * hidden.roll(1, dims=1)


def uses_rows_order(original: Any, layer: nn.Module, hidden: torch.Tensor, rest: dict[str, Any]) -> torch.Tensor:
    positions = torch.arange(hidden.shape[1])[None, :, None]
    output: torch.Tensor = original(layer, hidden + 0.01 * positions, **rest)
    return output


@pytest.mark.parametrize("change", [mixes_rows, uses_rows_order])
def test_layers_that_look_at_their_neighbours_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    folder = tiny_model(tmp_path)
    altered_layer(monkeypatch, change)
    with pytest.raises(ModelError, match="layer 0: differs"):
        SpanModel.load(folder, (0, 4), dtype=torch.float32)


def test_an_oddity_in_one_layer_of_the_span_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tmp_path)

    def change(original: Any, layer: Any, hidden: torch.Tensor, rest: dict[str, Any]) -> torch.Tensor:
        odd = layer.self_attn.layer_idx == 2 and rest.get("use_cache")
        layer.self_attn.scaling = layer.self_attn.head_dim**-0.5 * (1.05 if odd else 1.0)
        output: torch.Tensor = original(layer, hidden, **rest)
        return output

    altered_layer(monkeypatch, change)
    for span, wrong in (((0, 2), False), ((1, 3), True)):
        if wrong:
            with pytest.raises(ModelError, match="layer 2"):
                SpanModel.load(folder, span, dtype=torch.float32)
        else:
            SpanModel.load(folder, span, dtype=torch.float32)


def test_work_between_layers_is_found_in_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tmp_path)
    original = LlamaModel.forward

    def forward(self: LlamaModel, inputs_embeds: torch.Tensor, **rest: Any) -> Any:
        return original(self, inputs_embeds=inputs_embeds * 1.001, **rest)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match="between embedding, layers and norm"):
        SpanModel.load(folder, (1, 3), dtype=torch.float32)
