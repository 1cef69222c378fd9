"""Spans of models of known shapes with random weights, made on the device: for timing, which does not care."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipedec.model.architecture import build_on_meta
from pipedec.model.four_bits import joined
from pipedec.model.loader import compute_rotary
from pipedec.model.quantized import QuantizedLinear, numbers_of
from pipedec.model.span import Span
from pipedec.quantization import BLOCK

# Of layers: in the span's dtype, or in 8 bits, scaled by row or block, or in 4 bits, scaled by group.
Weights = Literal["plain", "fp8", "fp8-block", "int8", "int4"]
_GROUP, _DEVIATION = 128, 4.6  # of 4-bit numbers, all as likely

_LLAMA_3 = {"vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
_ROPE = {"rope_theta": 500000.0, "rope_type": "default"}
_SPREAD = 0.02  # standard deviation of the weights


@dataclass(frozen=True, slots=True)
class Preset:
    """A span to time: fields of a configuration of Llama's, and whether it is a whole model, as a draft is, or a stage
    between others."""

    config: Mapping[str, Any]
    whole: bool


def _llama(layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, **more: Any) -> dict[str, Any]:
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
    }
    fixed = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_parameters": _ROPE}
    return fixed | _LLAMA_3 | sizes | more


PRESETS = {
    "llama-3.1-70b-6": Preset(_llama(6, 8192, 64, 8, 28672), whole=False),
    "llama-3.1-8b-8": Preset(_llama(8, 4096, 32, 8, 14336), whole=False),
    "llama-3.2-1b": Preset(_llama(16, 2048, 32, 8, 8192, head_dim=64, tie_word_embeddings=True), whole=True),
    "tiny-stage": Preset(_llama(2, 64, 4, 2, 128, vocab_size=320), whole=False),
    "tiny-draft": Preset(_llama(2, 64, 4, 2, 128, vocab_size=320, tie_word_embeddings=True), whole=True),
}


def random_span(preset: Preset, dtype: torch.dtype, device: torch.device, weights: Weights = "plain") -> Span:
    """The preset's layers, with embedding, norm and head if it is whole."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(preset.config)))
        architecture = build_on_meta(Path(folder), dtype)
    ends = [architecture.embedding, architecture.norm, architecture.lm_head] if preset.whole else []
    for module in [*architecture.layers, *ends]:
        module.to_empty(device=device)
    if preset.whole and preset.config.get("tie_word_embeddings"):
        architecture.lm_head.weight = architecture.embedding.weight
    generator = torch.Generator(device).manual_seed(0)
    for module in [*architecture.layers, *ends]:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            parameter.normal_(0.0 if parameter.ndim > 1 else 1.0, _SPREAD, generator=generator)
    if weights != "plain":
        for layer in architecture.layers:
            _quantise(layer, weights, generator)
    compute_rotary(architecture.lm, architecture.base, device)
    count = len(architecture.layers)
    context = int(preset.config["max_position_embeddings"])
    return Span(architecture, (0, count), preset.whole, preset.whole, dtype, device, context)


def _quantise(layer: nn.Module, weights: Weights, generator: torch.Generator) -> None:
    """Give the linear layers within random quantised weights, about as large as the others."""
    for name, linear in [each for each in layer.named_modules() if type(each[1]) is nn.Linear]:
        rows, columns = linear.weight.shape
        dtype = {"int8": torch.int8, "int4": torch.uint8}.get(weights, torch.float8_e4m3fn)
        codes = torch.randint(
            0,
            256,
            (rows, columns // numbers_of(dtype)),
            generator=generator,
            device=generator.device,
            dtype=torch.uint8,
        )
        if dtype == torch.float8_e4m3fn:
            codes &= 0xF7  # no code without this bit is NaN
        shapes = {
            "fp8-block": (-(-rows // BLOCK), -(-columns // BLOCK)),
            "int4": (rows, columns // min(_GROUP, columns)),
        }
        small = QuantizedLinear(linear, dtype, shapes.get(weights, (rows,)))
        small.weight = nn.Parameter(codes.view(dtype), requires_grad=False)
        if dtype == torch.uint8:
            scale = torch.full_like(small.scale, _SPREAD / _DEVIATION).bfloat16()
            small.scale = nn.Parameter(joined(scale, None), requires_grad=False)
        else:
            small.scale.fill_(_SPREAD / float(small.weight[:BLOCK].float().std()))
        layer.set_submodule(name, small)


def weight_bytes(span: Span) -> int:
    """What a step reads of the weights: all of them once, but of the embedding, which is looked up, nothing."""
    architecture = span.architecture
    modules = [*span.layers, *([architecture.norm, architecture.lm_head] if span.last else [])]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
