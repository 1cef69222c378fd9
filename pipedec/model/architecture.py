"""The parts of a decoder-only transformers model, found by structure instead of by a table of families.

A model qualifies when it is exactly: an embedding, a list of layers, at most one rotary embedding, one final norm, one
LM head. Any further module would be a computation that a pipeline of these parts leaves out, so it is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipedec.errors import ModelError
from pipedec.model.attention import ATTENTION
from pipedec.model.shape import read_config
from pipedec.quantization import read_quantization

_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A causal language model on the meta device, and its parts."""

    lm: PreTrainedModel
    base: nn.Module
    embedding: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    lm_head: nn.Module
    rotary_name: str | None

    @property
    def name(self) -> str:
        return type(self.lm).__name__

    @property
    def rotary(self) -> nn.Module | None:
        return None if self.rotary_name is None else self.base.get_submodule(self.rotary_name)


def build_on_meta(path: Path, dtype: torch.dtype) -> Architecture:
    """The architecture that the config.json in `path` names, without weights, as if none were quantised. Raises
    ModelError, also for a quantisation that is not run."""
    try:
        read_quantization(read_config(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # transformers need not know: what it calls a layer is one to compute with
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
            )
    except (ValueError, KeyError, OSError, ImportError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: transformers has no causal language model for this config.json ({_first_line(error)})"
        ) from error
    architecture = _parts(lm.eval())
    lm.config._attn_implementation = ATTENTION
    return architecture


def _parts(lm: PreTrainedModel) -> Architecture:
    name, base = type(lm).__name__, lm.base_model
    embedding, lm_head = lm.get_input_embeddings(), lm.get_output_embeddings()
    if base is lm or embedding is None or lm_head is None:
        raise ModelError(f"{name}: no embedding, layers and LM head in the usual places; it cannot be split")
    unknown = set(getattr(lm.config, "layer_types", None) or ()) - _LAYER_TYPES
    if unknown:
        raise ModelError(f"{name}: layers of type {min(unknown)!r} are not attention over a KV cache")
    layers: dict[str, nn.ModuleList] = {}
    rotaries: dict[str, nn.Module] = {}
    others: dict[str, nn.Module] = {}
    for child_name, child in base.named_children():
        if isinstance(child, nn.ModuleList):
            layers[child_name] = child
        elif "RotaryEmbedding" in type(child).__name__:
            rotaries[child_name] = child
        elif child is not embedding and any(True for _ in child.parameters()):
            others[child_name] = child
    extra = [n for n, child in lm.named_children() if child is not base and child is not lm_head]
    if len(layers) != 1 or len(rotaries) > 1 or len(others) != 1 or extra:
        found = ", ".join([*layers, *rotaries, *others, *extra])
        raise ModelError(
            f"{name}: made of ({found}); only one list of layers, one rotary embedding, one final norm and one "
            "LM head can be split over stages"
        )
    (stack,), (norm,) = layers.values(), others.values()
    return Architecture(lm, base, embedding, stack, norm, lm_head, next(iter(rotaries), None))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
