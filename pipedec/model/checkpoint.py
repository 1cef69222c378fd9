"""The tensors of a checkpoint as a model takes them, read one at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipedec.errors import ModelError
from pipedec.model.quantized import MOST_SCALE, EightBitLinear, dequantized, is_finite
from pipedec.model.scales import Scales, checkpoint_scales
from pipedec.model.shape import TensorInfo, checkpoint_tensors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by name, and the scales of the weights in 8 bits."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    scales: Mapping[str, Scales]

    @classmethod
    def of(cls, path: Path, lm: nn.Module, outer: Collection[nn.Module], ends: Path | None) -> Checkpoint:
        """What the model in `path` holds for `lm`, and what it lacks of the modules `outer`, its embedding and head, of
        the model in `ends`; of a tied one, the embedding for both. Raises ModelError."""
        tensors, scales = checkpoint_tensors(path), checkpoint_scales(path)
        if ends is not None:
            names = tuple(f"{name}." for name, module in lm.named_modules() if module in outer)
            lent = {name: tensor for name, tensor in checkpoint_tensors(ends).items() if name.startswith(names)}
            scales |= {name: of for name, of in checkpoint_scales(ends).items() if name in lent.keys() - tensors.keys()}
            tensors = lent | tensors
        linear = {f"{name}.weight" for name, module in lm.named_modules() if type(module) is nn.Linear}
        known = lm.state_dict().keys()
        for name in scales:
            if name in known and name not in linear:
                raise ModelError(
                    f"{path}: tensor {name!r} is in 8 bits, but is no linear layer's weight; such are not run"
                )
        return cls(path, tensors, {name: of for name, of in scales.items() if name in linear})

    def read(self, name: str, owner: nn.Module, dtype: torch.dtype | None, device: torch.device) -> torch.Tensor:
        """A tensor for this module: itself in `dtype` (None: its own); of 8-bit weights what they stand for, unless the
        module keeps them; or their scales, for one that does. Raises ModelError."""
        of = self.scales.get(name)
        if of is None:
            if isinstance(owner, EightBitLinear) and name.rpartition(".")[2] != "bias":
                return self._scales(name, tuple(owner.scale.shape), device)
            return self._read(name, dtype, device)
        keeps = isinstance(owner, EightBitLinear)
        values = self._read(name, None, device, copy=keeps)
        scale = self._scales(of.name, of.shape, device)
        if not is_finite(values, scale):
            raise ModelError(
                f"{self.path}: tensor {name!r} or its {of.name!r} holds NaN, or scales of {MOST_SCALE:g} and more; "
                "download it again"
            )
        return values if keeps else dequantized(values, scale, dtype or torch.float32)

    def _scales(self, name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Scales in the shape that a layer keeps them in; one for all is repeated for each output."""
        scale = self._read(name, torch.float32, device)
        return scale if scale.shape == shape else scale.reshape(-1).expand(shape).contiguous()

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
