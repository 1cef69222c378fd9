"""The forward pass of a span's layers, which are transformers' own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipedec.model.attention import PoolCache
from pipedec.model.span import Span

GoesOn = Callable[[int], bool]  # asked before a layer, by its index in the span
Rotated = list[dict[str, Any]]  # the rotary embeddings of a batch's positions, as keyword arguments of each layer


class Layers:
    """A span's layers with their rotary embedding; if `fused`, what lies between matrix products and attention is
    compiled into few kernels, once for all layers of a kind."""

    def __init__(self, model: Span, fused: bool = False) -> None:
        self._layers = tuple(_fused(layer) if fused else layer for layer in model.layers)
        self._cache_arguments = [cache_argument(layer) for layer in model.layers]
        self._rotary = _Rotary(model)

    def __len__(self) -> int:
        return len(self._layers)

    def rotate(self, hidden: torch.Tensor, positions: torch.Tensor) -> Rotated:
        """The rotary embeddings of int64 positions [rows], for hidden states [rows, hidden] of any kind."""
        return self._rotary(hidden[None], positions[None])

    def __call__(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cache: PoolCache,
        rotated: Rotated | None = None,
        *,
        start: int = 0,
        end: int | None = None,
        goes_on: GoesOn | None = None,
    ) -> torch.Tensor | None:
        """Layers [start, end) on hidden [rows, hidden] at int64 positions [rows]; None if `goes_on` said no. `rotated`
        is what `rotate` gives; computed here if it is None."""
        if rotated is None:
            rotated = self.rotate(hidden, positions)
        hidden, positions = hidden[None], positions[None]
        for index in range(start, len(self._layers) if end is None else end):
            if goes_on is not None and not goes_on(index):
                return None
            output = self._layers[index](
                hidden,
                attention_mask=cache,
                position_ids=positions,
                use_cache=True,
                **{self._cache_arguments[index]: cache},
                **rotated[index],
            )
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden[0]


def cache_argument(module: nn.Module) -> str:
    """What a module of transformers calls its KV cache: `past_key_values`, or since 5.24 `cache`, where ported."""
    return "cache" if "cache" in inspect.signature(type(module).forward).parameters else "past_key_values"


def _fused(layer: nn.Module) -> Callable[..., Any]:
    import torch._dynamo  # takes a second, which only those who fuse should wait

    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # the layers' own numbers do not make them differ
    torch._dynamo.config.cache_size_limit = 64  # for kinds of layers, times sizes; `recompile_limit` since 2.7
    return torch.compile(layer, fullgraph=True)


class _Rotary:
    """What the model computes `Rotated` with."""

    def __init__(self, model: Span) -> None:
        self._module = model.architecture.rotary
        types = getattr(model.architecture.lm.config, "layer_types", None)
        by_type = self._module is not None and "layer_type" in inspect.signature(self._module.forward).parameters
        self._types = [types[i] if by_type and types else None for i in range(*model.span)]

    def __call__(self, hidden: torch.Tensor, positions: torch.Tensor) -> Rotated:
        if self._module is None:
            return [{} for _ in self._types]
        computed = {}
        for kind in set(self._types):
            extra = {} if kind is None else {"layer_type": kind}
            computed[kind] = {"position_embeddings": self._module(hidden, positions, **extra)}
        return [computed[kind] for kind in self._types]
