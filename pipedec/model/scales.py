"""Which tensors of a checkpoint are 8-bit weights, and where their scales are. No torch, no tensor bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipedec.errors import ModelError
from pipedec.model.shape import TensorInfo, checkpoint_tensors, read_config
from pipedec.quantization import BLOCK, FLOAT8, INT8, Quantization, Strategy, read_quantization

_SCALE_DTYPES = ("F32", "BF16", "F16")
_FOREIGN = {"weight_zero_point": "its numbers are asymmetric", "weight_g_idx": "its numbers are reordered"}
_REMEDY = "use the model's original weights, or download it again"


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of one weight [out, in]: their tensor's name, and the shape that a layer keeps them in: (out,), or
    (rows, columns) of blocks. `weight_dtype` is safetensors' name of what they scale."""

    name: str
    shape: tuple[int, ...]
    weight_dtype: str


def checkpoint_scales(path: Path) -> dict[str, Scales]:
    """The scales of each 8-bit weight of the model in folder `path`, by the weight's name. Raises ModelError that names
    the tensor where it is not stored as config.json says."""
    quantization, tensors = read_quantization(read_config(path)), checkpoint_tensors(path)
    found: dict[str, Scales] = {}
    for name, tensor in tensors.items():
        module, _, attribute = name.rpartition(".")
        if attribute in _FOREIGN and quantization is not None:
            raise ModelError(f"{path}: tensor {name!r}: {_FOREIGN[attribute]}, which is not run; {_REMEDY}")
        if tensor.dtype in (FLOAT8, INT8) and attribute == "weight":
            found[name] = _scales(path, module, tensor, tensors, quantization)
    return found


def _scales(
    path: Path,
    module: str,
    weight: TensorInfo,
    tensors: Mapping[str, TensorInfo],
    quantization: Quantization | None,
) -> Scales:
    where = f"{path}: tensor '{module}.weight' is {weight.dtype}"
    if quantization is None:
        raise ModelError(f"{where}, but config.json has no `quantization_config`; {_REMEDY}")
    scheme = quantization.scheme(module)
    if scheme is None or weight.dtype != scheme.dtype or len(weight.shape) != 2:
        said = "not quantised" if scheme is None else f"a matrix in {scheme.dtype}"
        raise ModelError(f"{where}, by the `quantization_config` of config.json it is {said}; {_REMEDY}")
    names = [name for each in quantization.scale_names if (name := f"{module}.{each}") in tensors]
    if not names:
        raise ModelError(f"{where}, and '{module}.{quantization.scale_names[0]}' is missing; {_REMEDY}")
    scale = tensors[names[0]]
    if scale.dtype not in _SCALE_DTYPES:
        raise ModelError(f"{path}: tensor {names[0]!r} is {scale.dtype}; scales are {', '.join(_SCALE_DTYPES)}")
    rows, columns = weight.shape
    blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    shapes: dict[Strategy, tuple[tuple[int, ...], ...]] = {
        "block": (blocks,),
        "tensor": ((), (1,), (1, 1)),
        "channel": ((rows, 1), (rows,)),
    }
    for strategy in scheme.strategies:
        if scale.shape in shapes[strategy]:
            return Scales(names[0], blocks if strategy == "block" else (rows,), weight.dtype)
    wanted = " or ".join(str(shapes[strategy][0]) for strategy in scheme.strategies)
    raise ModelError(f"{path}: tensor {names[0]!r} has shape {scale.shape}, config.json asks for {wanted}; {_REMEDY}")
