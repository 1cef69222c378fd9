"""A span of a transformers model, filled from only its own tensors.

The whole causal-LM class is built on the meta device, where it costs nothing; the modules of the span then get
their tensors one at a time, and all other layers stay on meta. Layers keep their own index, so whatever a family
derives from it (rotary or not, sliding window or not) stays true.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from pipedec.errors import ModelError
from pipedec.model.architecture import Architecture, build_on_meta
from pipedec.model.conformance import check_conformance
from pipedec.model.shape import TensorInfo, checkpoint_tensors, model_shape
from pipedec.model.span import Span

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
        progress: Progress | None = None,
    ) -> SpanModel:
        """Read layers [start, end) of the model in folder `path`.

        `first` and `last` default to whether the span touches the model's ends; (0, n) with both set is the
        model cut to its first n layers. An embedding or head that the checkpoint lacks is read from that of the model
        in `ends`, as by a draft that shares its target's. Raises ModelError that names the file or tensor and the
        remedy.
        """
        shape, architecture, device = model_shape(path), build_on_meta(path, dtype), torch.device(device)
        start, end = layers
        count = len(architecture.layers)
        if not 0 <= start < end <= count:
            raise ModelError(f"{path}: layers [{start}, {end}) were asked for, the model has {count}")
        first = start == 0 if first is None else first
        last = end == count if last is None else last
        kept: list[nn.Module] = list(architecture.layers[start:end])
        kept += [architecture.embedding] * first + [architecture.norm, architecture.lm_head] * last
        tensors = _borrowed(architecture, ends) | checkpoint_tensors(path)
        _fill(path, architecture.lm, kept, tensors, dtype, device, progress)
        for module in [architecture.base, *kept]:
            compute_rotary(architecture.lm, module, device)
        _refuse_unfilled(architecture, kept)
        span = cls(architecture, (start, end), first, last, dtype, device, shape.max_context)
        check_conformance(span)
        return span


def _borrowed(architecture: Architecture, ends: Path | None) -> dict[str, TensorInfo]:
    """The tensors of another model's embedding and head; of a tied one, of the embedding for both."""
    if ends is None:
        return {}
    outer = (architecture.embedding, architecture.lm_head)
    names = tuple(f"{name}." for name, module in architecture.lm.named_modules() if module in outer)
    return {name: tensor for name, tensor in checkpoint_tensors(ends).items() if name.startswith(names)}


def _fill(
    path: Path,
    lm: PreTrainedModel,
    kept: Sequence[nn.Module],
    tensors: dict[str, TensorInfo],
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None,
) -> None:
    """Give every parameter and persistent buffer of the kept modules its tensor, one at a time."""
    sources = _sources(path, lm, kept, tensors)
    _refuse_conversion(path, lm, sources)
    by_file: dict[Path, list[str]] = defaultdict(list)
    for source in sources:
        by_file[tensors[source].file].append(source)
    total, done = sum(tensors[source].count for source in sources), 0
    for file, names in by_file.items():
        for name in names:
            value = _read(file, name, dtype if _casts(lm, name) else None, device)
            for owner, attribute in sources[name]:
                _assign(path, name, owner, attribute, value)
            done += value.numel()
            if progress is not None:
                progress(done / total)


def _casts(lm: PreTrainedModel, name: str) -> bool:
    """Whether a tensor takes the model's dtype; a few families keep some (a router's bias) in float32."""
    exact = {*(lm._keep_in_fp32_modules or ()), *(lm._keep_in_fp32_modules_strict or ())}
    return not any(part in name for part in exact)


def _read(file: Path, name: str, dtype: torch.dtype | None, device: torch.device) -> torch.Tensor:
    # The file is mapped anew for each tensor: pages that were read stay resident for as long as the mapping does.
    try:
        with safe_open(file, framework="pt", device=str(device)) as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            return tensor.to(cast, copy=device.type == "cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: tensor {name!r} cannot be read ({error}); download it again") from error


def _sources(
    path: Path, lm: PreTrainedModel, kept: Sequence[nn.Module], tensors: dict[str, TensorInfo]
) -> dict[str, list[tuple[nn.Module, str]]]:
    """Checkpoint name -> the module attributes it fills (two for a tied embedding)."""
    names = {module: name for name, module in lm.named_modules()}
    tied = names[lm.get_input_embeddings()] + ".weight" if lm.config.tie_word_embeddings else None
    sources: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in kept:
        for tensor_name in module.state_dict():
            name = f"{names[module]}.{tensor_name}"
            if name not in tensors and module is lm.get_output_embeddings() and tied and tensor_name == "weight":
                name = tied
            if name not in tensors:
                raise ModelError(
                    f"{path}: tensor {name!r} is missing from the checkpoint; download the model again, or save it "
                    "with transformers' save_pretrained if it is in another layout"
                )
            owner_name, _, attribute = tensor_name.rpartition(".")
            sources[name].append((module.get_submodule(owner_name), attribute))
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
