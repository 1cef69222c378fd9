"""What a checkpoint holds, read from its JSON headers alone: no torch, no tensor bytes.

Formats: `config.json` as transformers writes it; safetensors (8 bytes of little-endian header length, a JSON header,
the tensors); `model.safetensors.index.json` for a sharded checkpoint.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipedec.errors import ModelError
from pipedec.quantization import FLOAT8, INT8, SCALE_ENDINGS, read_quantization
from pipedec.words import counted

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PACKED_NAMES, PER_WORD = ("weight_packed", "qweight"), 8  # of tensors of 4-bit weights; in each of their numbers
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies, and what it is. `dtype` is safetensors' name ("BF16")."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder-only model. Parameter counts are of the checkpoint's own tensors, but for the scales of
    quantised weights; `head_parameters` is what a last stage loads (norm and LM head, which is the embedding again if
    `tied`). `dtype` is that of weights which are not quantised."""

    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_context: int  # tokens
    tied: bool
    dtype: str
    layer_parameters: tuple[int, ...]
    embedding_parameters: int
    head_parameters: int

    def kv_elements(self, layers: int) -> int:
        """Numbers in one KV slot (K and V of one token) over so many layers."""
        return 2 * layers * self.num_kv_heads * self.head_dim

    def parameters(self, layers: tuple[int, int]) -> int:
        """Parameters that a stage with this half-open span loads, embedding and head included where it has them."""
        first, last = layers
        ends = (first == 0) * self.embedding_parameters + (last == self.num_layers) * self.head_parameters
        shared = first == 0 and last == self.num_layers and self.tied
        return sum(self.layer_parameters[first:last]) + ends - shared * self.embedding_parameters


def model_shape(path: Path) -> ModelShape:
    """Sizes of the model in folder `path`. Raises ModelError that names the file and the field."""
    config, tensors = read_config(path), checkpoint_tensors(path)
    if read_quantization(config) is not None:
        tensors = {
            name: _unpacked(name, tensor) for name, tensor in tensors.items() if not name.endswith(SCALE_ENDINGS)
        }
    layers, heads, hidden = (
        _positive(config, key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    per_layer = [0] * layers
    embedding = head = norm = 0
    for name, tensor in tensors.items():
        if match := _LAYER.search(name):
            if (index := int(match[1])) < layers:
                per_layer[index] += tensor.count
        elif name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")):
            embedding += tensor.count
        elif name.startswith(("lm_head.", "embed_out.")):
            head += tensor.count
        else:
            norm += tensor.count
    if missing := [i for i, count in enumerate(per_layer) if not count]:
        raise ModelError(
            f"{path}: config.json promises {counted(layers, 'layer')}, but layer {missing[0]} has no tensors"
        )
    tied = bool(config.get("tie_word_embeddings", head == 0))
    return ModelShape(
        architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
        num_layers=layers,
        hidden_size=hidden,
        vocab_size=_positive(config, "vocab_size"),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate_size=int(config.get("intermediate_size") or 4 * hidden),
        max_context=context_limit(config),
        tied=tied,
        dtype=_dtype(config, tensors),
        layer_parameters=tuple(per_layer),
        embedding_parameters=embedding,
        head_parameters=norm + (embedding if tied else head),
    )


def _unpacked(name: str, tensor: TensorInfo) -> TensorInfo:
    """A tensor of as many numbers as it stands for: 4-bit ones are eight to a number."""
    return replace(tensor, shape=(PER_WORD, *tensor.shape)) if name.endswith(PACKED_NAMES) else tensor


def read_config(path: Path) -> dict[str, Any]:
    """config.json of the model in folder `path`."""
    file = path / "config.json"
    return _read_json(file, "the folder of a model as transformers saves it has one")


def checkpoint_tensors(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of the checkpoint by name, from the headers of its safetensors files."""
    index = path / INDEX_FILE
    if index.exists():
        weight_map = _read_json(index, "download it again").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{index}: `weight_map` is missing; download it again")
        names = sorted(set(weight_map.values()))
        if unsafe := [name for name in names if Path(name).name != name]:
            raise ModelError(f"{index}: shard {unsafe[0]!r} lies outside the model's folder")
    elif (path / SINGLE_FILE).exists():
        names = [SINGLE_FILE]
    else:
        raise ModelError(f"{path}: neither {SINGLE_FILE} nor {INDEX_FILE} is there; only safetensors are loaded")
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        tensors.update(_header(path / name))
    return tensors


def _header(file: Path) -> dict[str, TensorInfo]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{file}: not a safetensors file, or cut short; download it again")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {name: TensorInfo(file, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); download it again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: corrupt safetensors header; download it again") from error
    if 8 + length + end > size:
        raise ModelError(f"{file}: {8 + length + end} bytes are promised, {size} are there; download it again")
    return tensors


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: a JSON object is expected")
    return content


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ModelError(
            f"config.json: `{key}` is {value!r}, a positive integer is expected; only decoder-only models are run"
        )
    return value


def context_limit(config: Mapping[str, Any]) -> int:
    """Positions that are computed the same whatever else is in the batch.

    Dynamic and "longrope" frequencies change for *all* positions once any passes the original context, so
    beyond it a token would depend on its neighbours in the batch.
    """
    context = _positive(config, "max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ModelError(f"config.json: `rope_parameters` is {rope!r}, an object is expected")
    if rope.get("rope_type", rope.get("type")) in ("longrope", "su", "yarn_longrope"):
        original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
        return min(context, int(original or context))
    return context


def _dtype(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """The dtype most of the checkpoint's numbers have, quantised weights left out."""
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        in_8_bits = tensor.dtype in (FLOAT8, INT8) and name.endswith(".weight")
        if not in_8_bits and not name.endswith(PACKED_NAMES):
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.count
    if not counts:
        raise ModelError("every tensor of the checkpoint is quantised; embedding and norms cannot be")
    name = max(counts, key=lambda dtype: counts[dtype])
    if name not in _DTYPES:
        raise ModelError(f"the weights are {name}; only {', '.join(_DTYPES)} are run, and 8 or 4 bits with scales")
    return _DTYPES[name]
