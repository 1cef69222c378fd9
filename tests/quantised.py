"""Tiny models with quantised weights, as each format writes them, and their twins: plain models of the same weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipedec.model.shape import SINGLE_FILE
from tests.four_bits import AWQ, GPTQ, GROUP, Store, awq, compressed_tensors, gptq, restored

Quantise = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # a weight [out, in] -> numbers, scales

FLOAT_MOST, INT_MOST = 448.0, 127.0


def to_float8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale).clamp(-FLOAT_MOST, FLOAT_MOST).to(torch.float8_e4m3fn)


def by_block(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = (-(-size // 128) for size in weight.shape)
    scale = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            scale[i, j] = weight[128 * i : 128 * i + 128, 128 * j : 128 * j + 128].abs().max() / FLOAT_MOST
    return to_float8(weight, spread(scale, weight.shape)), scale


def by_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().max().reshape(1) / FLOAT_MOST
    return to_float8(weight, scale), scale


def by_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = (weight.abs().amax(1, keepdim=True) / FLOAT_MOST).bfloat16().float()
    return to_float8(weight, scale), scale.bfloat16()


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / INT_MOST
    return (weight / scale).round().to(torch.int8), scale


def spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The scale of each number: scales are of all, of a row each, or of a block each."""
    rows, columns = shape
    if scale.numel() == 1:
        return scale.float().reshape(1, 1).expand(shape)
    if scale.shape == (rows, 1):
        return scale.float().expand(shape)
    return scale.float()[torch.arange(rows)[:, None] // 128, torch.arange(columns) // 128]


def compressed(form: str, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    """A `quantization_config` as compressed-tensors writes it."""
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False} | more
    activations = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
FORMS: dict[str, tuple[dict[str, Any], str, Quantise]] = {
    "fp8-block": (FP8 | {"weight_block_size": [128, 128]}, "weight_scale_inv", by_block),
    "fp8-tensor": (FP8 | {"weight_block_size": None}, "weight_scale_inv", by_tensor),
    "fp8-old": (FP8 | {"ignored_layers": ["lm_head"]}, "weight_scale", by_tensor),
    "float-tensor": (compressed("float-quantized", "float", "tensor"), "weight_scale", by_tensor),
    "float-channel": (compressed("float-quantized", "float", "channel"), "weight_scale", by_channel),
    "float-block": (
        compressed("float-quantized", "float", "block", block_structure=[128, 128]),
        "weight_scale",
        by_block,
    ),
    "int-channel": (compressed("int-quantized", "int", "channel"), "weight_scale", to_int8),
}


def pack_quantized(group: int | None, **more: Any) -> dict[str, Any]:
    """A `quantization_config` of 4-bit weights as compressed-tensors writes it."""
    size = {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    config = compressed("pack-quantized", "int", **(size | {"num_bits": 4} | more))
    config["config_groups"]["group_0"]["input_activations"] = None
    return config


FOUR_BITS: dict[str, tuple[dict[str, Any], Store]] = {
    "pack-group": (pack_quantized(GROUP), compressed_tensors(GROUP, zeros=False)),
    "pack-channel": (pack_quantized(None), compressed_tensors(None, zeros=False, dtype=torch.bfloat16)),
    "pack-zeros": (pack_quantized(GROUP, symmetric=False), compressed_tensors(GROUP, zeros=True)),
    "gptq": (GPTQ | {"group_size": GROUP}, gptq(GROUP, less=1)),
    "gptq-v2": (
        GPTQ | {"group_size": -1, "desc_act": True, "checkpoint_format": "gptq_v2"},
        gptq(None, less=0),
    ),
    "awq": (AWQ, awq),
}


def quantised(source: Path, folder: Path, form: str, only: str = r".*_proj\.weight", **config: Any) -> Path:
    """The model in `source` with quantised weights in `folder`, those whose names match `only`. `config` is added to
    its `quantization_config`."""
    said = (FORMS | FOUR_BITS)[form][0]
    shutil.copytree(source, folder)
    written: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"quantization_config": said | config}))
    tensors = load_file(folder / SINGLE_FILE)
    for name in list(tensors):
        before = name.removesuffix("weight")
        if re.fullmatch(only, name) and form in FOUR_BITS:
            stored = FOUR_BITS[form][1](tensors.pop(name).float())
            tensors |= {f"{before}{attribute}": tensor for attribute, tensor in stored.items()}
        elif re.fullmatch(only, name):
            _, scale_name, quantise = FORMS[form]
            tensors[name], scale = quantise(tensors[name].float())
            tensors |= {f"{before}{scale_name}": scale, f"{before}input_scale": torch.ones(1)}
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    return folder


def plain(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The model in `source` without quantisation: each number times its scale, rounded to `dtype`, in `folder`."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    tensors, made = load_file(folder / SINGLE_FILE), {}
    packed = {name.rpartition(".")[0] for name in tensors if name.endswith((".qweight", ".weight_packed"))}
    for module in packed:
        stored = {name.removeprefix(f"{module}."): t for name, t in tensors.items() if name.startswith(f"{module}.")}
        made[f"{module}.weight"] = restored(said, stored).to(dtype).contiguous()
    for name, tensor in tensors.items():
        module, _, attribute = name.rpartition(".")
        scale = tensors.get(f"{name}_scale", tensors.get(f"{name}_scale_inv"))
        if scale is not None:
            tensor = (tensor.float() * spread(scale, tensor.shape)).to(dtype)
        if not name.endswith(("_scale", "_scale_inv")) and (module not in packed or attribute == "bias"):
            made[name] = tensor
    save_file(made, folder / SINGLE_FILE, metadata={"format": "pt"})
    return folder
