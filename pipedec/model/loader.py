"""A span of a transformers model, filled from only its own tensors.

The whole causal-LM class is built on the meta device, where it costs nothing; the modules of the span then get
their tensors one at a time, and all other layers stay on meta. Layers keep their own index, so whatever a family
derives from it (rotary or not, sliding window or not) stays true. Quantised weights are multiplied by their
scales as they are read, or kept as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from pipedec.errors import ModelError
from pipedec.model.architecture import Architecture, build_on_meta
from pipedec.model.checkpoint import Checkpoint
from pipedec.model.conformance import check_conformance
from pipedec.model.quantized import QuantizedLinear
from pipedec.model.scales import QuantizedWeight
from pipedec.model.shape import model_shape
from pipedec.model.span import Span
from pipedec.quantization import FLOAT8, INT8, PACKED

_KEPT = {FLOAT8: torch.float8_e4m3fn, INT8: torch.int8, PACKED: torch.uint8}

Progress = Callable[[float], None]  # is given the fraction loaded so far, rising to 1.0


class SpanModel(Span):
    """A span read from a checkpoint, and proven to compute what transformers computes."""

    @classmethod
    def load(
        cls,
        path: Path,
        layers: tuple[int, int],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        first: bool | None = None,
        last: bool | None = None,
        ends: Path | None = None,
        keep_quantized: bool | None = None,
        progress: Progress | None = None,
    ) -> SpanModel:
        """Read layers [start, end) of the model in folder `path`.

        `first` and `last` default to whether the span touches the model's ends; (0, n) with both set is the
        model cut to its first n layers. An embedding or head that the checkpoint lacks is read from that of the model
        in `ends`, as by a draft that shares its target's. `keep_quantized`: quantised weights stay so; None: on
        CUDA devices. Raises ModelError that names the file or tensor and the remedy.
        """
        shape, architecture, device = model_shape(path), build_on_meta(path, dtype), torch.device(device)
        start, end = layers
        count = len(architecture.layers)
        if not 0 <= start < end <= count:
            raise ModelError(f"{path}: layers [{start}, {end}) were asked for, the model has {count}")
        first = start == 0 if first is None else first
        last = end == count if last is None else last
        checkpoint = Checkpoint.of(path, architecture.lm, (architecture.embedding, architecture.lm_head), ends)
        if device.type == "cuda" if keep_quantized is None else keep_quantized:
            architecture = _with_quantized(architecture, checkpoint.quantized)
        kept: list[nn.Module] = list(architecture.layers[start:end])
        kept += [architecture.embedding] * first + [architecture.norm, architecture.lm_head] * last
        _fill(checkpoint, architecture.lm, kept, dtype, device, progress)
        for module in [architecture.base, *kept]:
            compute_rotary(architecture.lm, module, device)
        _refuse_unfilled(architecture, kept)
        span = cls(architecture, (start, end), first, last, dtype, device, shape.max_context)
        check_conformance(span)
        return span


def _with_quantized(architecture: Architecture, weights: Mapping[str, QuantizedWeight]) -> Architecture:
    """The architecture with layers that hold quantised weights, where these are."""
    lm = architecture.lm
    for name, of in weights.items():
        module = name.removesuffix(".weight")
        layer = QuantizedLinear(lm.get_submodule(module), _KEPT[of.info.dtype], of.shape)
        lm.set_submodule(module, layer)
    return replace(architecture, lm_head=lm.get_output_embeddings())


def _fill(
    checkpoint: Checkpoint,
    lm: PreTrainedModel,
    kept: Sequence[nn.Module],
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None,
) -> None:
    """Give every parameter and persistent buffer of the kept modules its tensor, one at a time."""
    sources, tensors = _sources(checkpoint, lm, kept), checkpoint.tensors
    _refuse_conversion(checkpoint.path, lm, sources)
    by_file: dict[Path, list[str]] = defaultdict(list)
    for source in sources:
        by_file[tensors[source].file].append(source)
    total, done = sum(tensors[source].count for source in sources), 0
    for names in by_file.values():
        for name in names:
            value = checkpoint.read(name, sources[name][0][0], dtype if _casts(lm, name) else None, device)
            for owner, attribute in sources[name]:
                _assign(checkpoint.path, name, owner, attribute, value)
            done += tensors[name].count
            if progress is not None:
                progress(done / total)


def _casts(lm: PreTrainedModel, name: str) -> bool:
    """Whether a tensor takes the model's dtype; a few families keep some (a router's bias) in float32."""
    exact = {*(lm._keep_in_fp32_modules or ()), *(lm._keep_in_fp32_modules_strict or ())}
    return not any(part in name for part in exact)


def _sources(
    checkpoint: Checkpoint, lm: PreTrainedModel, kept: Sequence[nn.Module]
) -> dict[str, list[tuple[nn.Module, str]]]:
    """Checkpoint name -> the module attributes it fills (two for a tied embedding)."""
    path, tensors = checkpoint.path, checkpoint.tensors
    names = {module: name for name, module in lm.named_modules()}
    tied = names[lm.get_input_embeddings()] + ".weight" if lm.config.tie_word_embeddings else None
    sources: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in kept:
        for tensor_name in module.state_dict():
            name = f"{names[module]}.{tensor_name}"
            if name not in tensors and module is lm.get_output_embeddings() and tied and tensor_name == "weight":
                name = tied
            owner_name, _, attribute = tensor_name.rpartition(".")
            owner = module.get_submodule(owner_name)
            if isinstance(owner, QuantizedLinear) and attribute == "scale":
                name = checkpoint.quantized[f"{name.removesuffix('scale')}weight"].scale
            if name not in tensors:
                raise ModelError(
                    f"{path}: tensor {name!r} is missing from the checkpoint; download the model again, or save it "
                    "with transformers' save_pretrained if it is in another layout"
                )
            sources[name].append((owner, attribute))
    return sources


def _refuse_conversion(path: Path, lm: PreTrainedModel, sources: dict[str, list[tuple[nn.Module, str]]]) -> None:
    """A checkpoint whose tensors transformers would rearrange on loading cannot be assigned name by name."""
    transforms = get_model_conversion_mapping(lm)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    for name in sources:
        renamed, converted = rename_source_key(name, renamings, converters)
        if renamed != name or converted is not None:
            raise ModelError(f"{path}: tensor {name!r} is in a layout that would have to be converted first")


def _assign(path: Path, name: str, owner: nn.Module, attribute: str, value: torch.Tensor) -> None:
    wanted = getattr(owner, attribute)
    if wanted.shape != value.shape:
        raise ModelError(
            f"{path}: tensor {name!r} has shape {tuple(value.shape)}, config.json asks for {tuple(wanted.shape)}; "
            "the two files are of different models"
        )
    if attribute in owner._parameters:
        owner._parameters[attribute] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[attribute] = value


def compute_rotary(lm: PreTrainedModel, parent: nn.Module, device: torch.device) -> None:
    """Rotary frequencies are in no checkpoint: build each such module anew, off the meta device."""
    for name, child in list(parent.named_children()):
        if "RotaryEmbedding" in type(child).__name__:
            setattr(parent, name, type(child)(config=lm.config).to(device))
        elif not isinstance(child, nn.ModuleList) or parent is not lm.base_model:
            compute_rotary(lm, child, device)


def _refuse_unfilled(architecture: Architecture, kept: Sequence[nn.Module]) -> None:
    for module in kept:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_meta:
                raise ModelError(
                    f"{architecture.name}: {type(module).__name__}.{name} is computed by the family's own code, not "
                    "stored in the checkpoint; such models are not run"
                )
