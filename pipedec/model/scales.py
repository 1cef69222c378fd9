"""Which tensors of a checkpoint are quantised weights, and where their scales are. No torch, no tensor bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipedec.errors import ModelError
from pipedec.model.shape import PACKED_NAMES, PER_WORD, TensorInfo, checkpoint_tensors, read_config
from pipedec.quantization import (
    BLOCK,
    FLOAT8,
    INT8,
    PACKED,
    Packing,
    Quantization,
    Scheme,
    Strategy,
    read_quantization,
)

_SCALE_DTYPES = ("F32", "BF16", "F16")
_BESIDE = {  # a tensor of 4-bit weights: what those of scales, zeros and order are called
    "weight_packed": ("weight_scale", "weight_zero_point", "weight_g_idx"),
    "qweight": ("scales", "qzeros", "g_idx"),
}
_FOREIGN = {"weight_zero_point": "its numbers are asymmetric", "weight_g_idx": "its numbers are reordered"}
_REMEDY = "use the model's original weights, or download it again"


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """How one weight [out, in] is stored: the names of its tensor and of that of its scales, and the shape that a layer
    keeps these in: (out,), or (rows, columns) of blocks, or for 4 bits (out, groups). `info` is that of the weight if
    each number were one of its tensor's.

    4-bit weights have a `packing`, and may have tensors of zeros and of the group that each number is of.
    """

    name: str
    info: TensorInfo
    scale: str
    shape: tuple[int, ...]
    packing: Packing | None = None
    zero: str | None = None
    order: str | None = None


def quantized_weights(path: Path) -> dict[str, QuantizedWeight]:
    """The quantised weights of the model in folder `path`, by the names that they have in a plain checkpoint. Raises
    ModelError that names the tensor where it is not stored as config.json says."""
    quantization, tensors = read_quantization(read_config(path)), checkpoint_tensors(path)
    found: dict[str, QuantizedWeight] = {}
    for name, tensor in tensors.items():
        module, _, attribute = name.rpartition(".")
        if attribute in PACKED_NAMES:
            found[f"{module}.weight"] = _in_4_bits(path, name, tensors, _scheme(path, name, tensor, quantization))
        elif attribute in _FOREIGN and quantization is not None:
            scheme = quantization.scheme(module)
            if scheme is None or scheme.packing is None or not (scheme.zeros or attribute == "weight_g_idx"):
                raise ModelError(f"{path}: tensor {name!r}: {_FOREIGN[attribute]}, which is not run; {_REMEDY}")
        elif tensor.dtype in (FLOAT8, INT8) and attribute == "weight":
            found[name] = _in_8_bits(path, module, tensors, quantization, _scheme(path, name, tensor, quantization))
    return found


def _scheme(path: Path, name: str, tensor: TensorInfo, quantization: Quantization | None) -> Scheme:
    where = f"{path}: tensor {name!r} is {tensor.dtype}"
    if quantization is None:
        raise ModelError(f"{where}, but config.json has no `quantization_config`; {_REMEDY}")
    module, _, attribute = name.rpartition(".")
    scheme = quantization.scheme(module)
    if scheme is None:
        raise ModelError(f"{where}, by the `quantization_config` of config.json it is not quantised; {_REMEDY}")
    wanted = {None: "weight", "compressed-tensors": "weight_packed"}.get(scheme.packing, "qweight")
    if tensor.dtype != scheme.dtype or len(tensor.shape) != 2 or attribute != wanted:
        said = f"a matrix in {scheme.dtype}" + (f" and called {wanted!r}" if attribute != wanted else "")
        raise ModelError(f"{where}, by the `quantization_config` of config.json it is {said}; {_REMEDY}")
    return scheme


def _in_8_bits(
    path: Path, module: str, tensors: Mapping[str, TensorInfo], quantization: Quantization | None, scheme: Scheme
) -> QuantizedWeight:
    assert quantization is not None  # else there is no scheme
    weight = tensors[f"{module}.weight"]
    names = [name for each in quantization.scale_names if (name := f"{module}.{each}") in tensors]
    scale = names[0] if names else f"{module}.{quantization.scale_names[0]}"
    rows, columns = weight.shape
    blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    shapes: dict[Strategy, tuple[tuple[int, ...], ...]] = {
        "block": (blocks,),
        "tensor": ((), (1,), (1, 1)),
        "channel": ((rows, 1), (rows,)),
    }
    found = _beside(
        path, f"{module}.weight", scale, tensors, _SCALE_DTYPES, [shapes[strategy] for strategy in scheme.strategies]
    )
    by_block = "block" in scheme.strategies and found.shape == blocks
    return QuantizedWeight(f"{module}.weight", weight, scale, blocks if by_block else (rows,))


def _in_4_bits(path: Path, name: str, tensors: Mapping[str, TensorInfo], scheme: Scheme) -> QuantizedWeight:
    module, _, attribute = name.rpartition(".")
    scale, zero, order = (f"{module}.{each}" for each in _BESIDE[attribute])
    assert scheme.packing is not None
    outputs, inputs = packed_shape(scheme.packing, tensors[name].shape)
    if inputs % (group := scheme.group or 2):
        raise ModelError(
            f"{path}: tensor {name!r} has {inputs} inputs, which groups of {group} do not divide; use the model's "
            "original weights"
        )
    groups = 1 if scheme.group is None else inputs // scheme.group
    by_output = scheme.packing == "compressed-tensors"
    _beside(path, name, scale, tensors, _SCALE_DTYPES, [((outputs, groups) if by_output else (groups, outputs),)])
    if scheme.zeros:
        words = -(-outputs // PER_WORD)
        _beside(path, name, zero, tensors, (PACKED,), [((words, groups) if by_output else (groups, words),)])
    if order in tensors:
        _beside(path, name, order, tensors, ("I32", "I64"), [((inputs,),)])
    return QuantizedWeight(
        name,
        TensorInfo(tensors[name].file, scheme.dtype, (outputs, inputs)),
        scale,
        (outputs, groups),
        scheme.packing,
        zero if scheme.zeros else None,
        order if order in tensors else None,
    )


def packed_shape(packing: Packing, shape: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs of a weight in 4 bits whose tensor has this shape."""
    height, width = shape
    if packing == "compressed-tensors":
        return height, PER_WORD * width
    return (PER_WORD * width, height) if packing == "awq" else (width, PER_WORD * height)


def _beside(
    path: Path,
    weight: str,
    name: str,
    tensors: Mapping[str, TensorInfo],
    dtypes: tuple[str, ...],
    shapes: list[tuple[tuple[int, ...], ...]],
) -> TensorInfo:
    """A tensor that belongs to a weight, in one of these dtypes and shapes; the first of each kind is told."""
    if name not in tensors:
        raise ModelError(f"{path}: tensor {weight!r} is {tensors[weight].dtype}, and {name!r} is missing; {_REMEDY}")
    tensor = tensors[name]
    if tensor.dtype not in dtypes:
        what = "scales are" if dtypes == _SCALE_DTYPES else "expected is"
        raise ModelError(f"{path}: tensor {name!r} is {tensor.dtype}; {what} {', '.join(dtypes)}; {_REMEDY}")
    if not any(tensor.shape in kind for kind in shapes):
        wanted = " or ".join(str(kind[0]) for kind in shapes)
        raise ModelError(f"{path}: tensor {name!r} has shape {tensor.shape}, config.json asks for {wanted}; {_REMEDY}")
    return tensor
