"""The tensors of a checkpoint as a model takes them, read one at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipedec.errors import ModelError
from pipedec.model.four_bits import is_in_order, joined, repacked, unpacked_zeros
from pipedec.model.quantized import MOST_SCALE, QuantizedLinear, dequantized, is_finite
from pipedec.model.scales import QuantizedWeight, quantized_weights
from pipedec.model.shape import TensorInfo, checkpoint_tensors
from pipedec.quantization import Packing


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by name, and how the quantised weights are stored. A weight has the name that it has in a plain
    checkpoint."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    quantized: Mapping[str, QuantizedWeight]

    @classmethod
    def of(cls, path: Path, lm: nn.Module, outer: Collection[nn.Module], ends: Path | None) -> Checkpoint:
        """What the model in `path` holds for `lm`, and what it lacks of the modules `outer`, its embedding and head, of
        the model in `ends`; of a tied one, the embedding for both. Raises ModelError."""
        tensors, quantized = _contents(path)
        if ends is not None:
            names = tuple(f"{name}." for name, module in lm.named_modules() if module in outer)
            all_lent, lent_quantized = _contents(ends)
            lent = {name: tensor for name, tensor in all_lent.items() if name.startswith(names)}
            quantized |= {name: of for name, of in lent_quantized.items() if name in lent.keys() - tensors.keys()}
            tensors = lent | tensors
        linear = {f"{name}.weight" for name, module in lm.named_modules() if type(module) is nn.Linear}
        known = lm.state_dict().keys()
        for name, of in quantized.items():
            if name in known and name not in linear:
                raise ModelError(
                    f"{path}: tensor {of.name!r} is quantised, but is no linear layer's weight; such are not run"
                )
        return cls(path, tensors, {name: of for name, of in quantized.items() if name in linear})

    def read(self, name: str, owner: nn.Module, dtype: torch.dtype | None, device: torch.device) -> torch.Tensor:
        """A tensor for this module: itself in `dtype` (None: its own); of quantised weights what they stand for, unless
        the module keeps them; or their scales, for one that does. Raises ModelError."""
        if (of := self.quantized.get(name)) is not None:
            return self._weight(of, dtype or torch.float32, device, kept=isinstance(owner, QuantizedLinear))
        if isinstance(owner, QuantizedLinear) and name.rpartition(".")[2] != "bias":
            return self._scales(self.quantized[f"{name.rpartition('.')[0]}.weight"], device)
        return self._read(name, dtype, device)

    def _weight(self, of: QuantizedWeight, dtype: torch.dtype, device: torch.device, *, kept: bool) -> torch.Tensor:
        if of.order is not None and not is_in_order(self._read(of.order, None, torch.device("cpu")), of.shape[1]):
            raise ModelError(
                f"{self.path}: tensor {of.order!r}: numbers of a group do not follow each other (desc_act, or actorder "
                "group), which is not run; use the model's original weights, or a checkpoint without that order"
            )
        values = self._read(of.name, None, device, copy=kept)
        if of.packing is not None:
            values = repacked(of.packing, values)
        scale = self._scales(of, device)
        if not is_finite(values, scale):
            raise ModelError(
                f"{self.path}: tensor {of.name!r} or its {of.scale!r} holds NaN, or scales of {MOST_SCALE:g} and more; "
                "download it again"
            )
        return values if kept else dequantized(values, scale, dtype)

    def _scales(self, of: QuantizedWeight, device: torch.device) -> torch.Tensor:
        """Scales in the shape that a layer keeps them in, with zeros where it is of 4 bits; one for all is repeated for
        each output."""
        scale = self._read(of.scale, torch.float32, device)
        if of.packing is None:
            return scale if scale.shape == of.shape else scale.reshape(-1).expand(of.shape).contiguous()
        zero = None if of.zero is None else self._zeros(of.packing, of.zero, of.shape[0], device)
        try:
            return joined(scale if of.packing == "compressed-tensors" else scale.T, zero)
        except ValueError as error:
            raise self._refused(of.scale, error) from error

    def _zeros(self, packing: Packing, name: str, outputs: int, device: torch.device) -> torch.Tensor:
        try:
            return unpacked_zeros(packing, self._read(name, None, device), outputs)
        except ValueError as error:
            raise self._refused(name, error) from error

    def _refused(self, name: str, error: ValueError) -> ModelError:
        return ModelError(f"{self.path}: tensor {name!r} {error}; use the model's original weights, or another format")

    def _read(self, name: str, dtype: torch.dtype | None, device: torch.device, *, copy: bool = True) -> torch.Tensor:
        # The file is mapped anew for each tensor: pages that were read stay resident for as long as the mapping does.
        file = self.tensors[name].file
        try:
            with safe_open(file, framework="pt", device=str(device)) as opened:
                tensor: torch.Tensor = opened.get_tensor(name)
                cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                return tensor.to(cast, copy=copy and device.type == "cpu")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: tensor {name!r} cannot be read ({error}); download it again") from error


def _contents(path: Path) -> tuple[dict[str, TensorInfo], dict[str, QuantizedWeight]]:
    """The tensors of a checkpoint, quantised weights among them as if plain, and how these are stored."""
    quantized = quantized_weights(path)
    return checkpoint_tensors(path) | {name: of.info for name, of in quantized.items()}, quantized
