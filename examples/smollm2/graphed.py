"""A function of tensors, replayed as CUDA graphs: launching a small model's kernels takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch


class Graphed:
    """Calls `function`; from the second call with arguments of some shapes on, by a graph that was captured for them.

    The function must do the same to the same tensors each time, but for its arguments, and never wait for the GPU.
    What it returns is overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], Any] | None] = {}
        self._pool = torch.cuda.graph_pool_handle()  # one for all: no two run at a time

    def __call__(self, *arguments: torch.Tensor, key: Hashable = None) -> Any:
        """`key` tells apart what the shapes do not."""
        shapes = (key, *(tuple(a.shape) for a in arguments))
        if shapes not in self._graphs:
            self._graphs[shapes] = None
            return self._function(*arguments)  # libraries make ready what a capture forbids
        captured = self._graphs[shapes]
        if captured is None:
            inputs = [a.clone() for a in arguments]
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = self._function(*inputs)
            captured = self._graphs[shapes] = graph, inputs, outputs
        graph, inputs, outputs = captured
        for kept, argument in zip(inputs, arguments, strict=True):
            kept.copy_(argument, non_blocking=True)
        graph.replay()
        return outputs
