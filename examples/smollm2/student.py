"""The draft: a few Llama layers and a norm between the target's own embedding and its own head.

It starts as some of the target's layers. Only layers and norm are trained and stored: what is missing from the saved
checkpoint, embedding and head, PipeDec takes from the target.
"""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import rms_norm
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

SHARED = "model.embed_tokens."
CAUSAL = "pipedec-causal"  # "sdpa", but for the mask that transformers makes for it, and waits for the GPU to make

AttentionInterface.register(CAUSAL, sdpa_attention_forward)


def first_student(folder: Path, layers: list[int]) -> Any:
    """A model of the target's layers `layers`, in float32; its embedding and head do not train."""
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    of_target = student.model.layers
    student.model.layers = torch.nn.ModuleList([of_target[index] for index in layers])
    for index, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = index
    student.config.num_hidden_layers = len(layers)
    student.get_input_embeddings().weight.requires_grad_(False)
    return student


def grow(student: Any, layers: int) -> None:
    """Add this many layers on top, copies of the last that change nothing until they have learnt to."""
    for _ in range(layers):
        layer = copy.deepcopy(student.model.layers[-1])
        layer.self_attn.layer_idx = len(student.model.layers)
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        student.model.layers.append(layer)
    student.config.num_hidden_layers = len(student.model.layers)


def fuse_norms(model: Any) -> None:
    """Compute each norm on a GPU by one kernel instead of six, in autocast's precision where that is on."""

    def fused(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
        return rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon).to(dtype)

    for layer in (*model.model.layers, model.model):
        for norm in layer.children():
            if hasattr(norm, "variance_epsilon"):
                norm.forward = partial(fused, norm)


def save_student(student: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """config.json and model.safetensors, without embedding and head."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**student.config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    del config["_name_or_path"]  # where the target happened to lie
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    tensors = {
        name: tensor.detach().to(dtype).contiguous()
        for name, tensor in student.state_dict().items()
        if not name.startswith((SHARED, "lm_head."))
    }
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # it goes into packages and images, where others read it


def load_student(target: Path, folder: Path) -> Any:
    """A saved student, in float32, to go on with or to look at."""
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    student = first_student(target, list(range(layers)))
    missing, unexpected = student.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unexpected or any(not name.startswith((SHARED, "lm_head.")) for name in missing):
        raise ValueError(f"{folder}: {unexpected or missing} do not fit a student of {layers} layers")
    return student
