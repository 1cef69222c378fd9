"""The ways to run a span: which attention, and whether in programs of fixed shape."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch

from pipedec.errors import ModelError
from pipedec.model.attention import Attention
from pipedec.model.invariant_attention import InvariantAttention
from pipedec.model.kv_pool import KVPool
from pipedec.model.packed import has_chained_product
from pipedec.model.sdpa_attention import SdpaAttention
from pipedec.model.span import Span
from pipedec.model.table_attention import Compute, DenseCompute, TableAttention

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
UNSHAPED = ("sdpa", "invariant")  # attentions whose shapes are those of each batch


@dataclass(frozen=True, slots=True)
class Execution:
    """How a span is run. `buckets`, ascending: numbers of rows that have a program of fixed shape, to which fewer rows
    are padded; more rows, as of a prompt, are run without. `graphs`: programs are recorded as CUDA graphs. `fused`:
    what lies between matrix products and attention is compiled into few kernels."""

    attention: Literal["sdpa", "invariant", "dense", "triton"] = "sdpa"
    buckets: tuple[int, ...] = ()
    graphs: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        if self.buckets and (self.attention in UNSHAPED or tuple(sorted({*self.buckets})) != self.buckets):
            raise ValueError(
                f"buckets {self.buckets} with {self.attention}: ascending, with an attention of fixed shape"
            )
        if self.fused and self.attention in UNSHAPED:
            raise ValueError("layers are fused around an attention of fixed shape")
        if self.graphs and not self.buckets:
            raise ValueError("graphs are recorded for buckets, of which there are none")

    @classmethod
    def on(cls, device: torch.device, buckets: tuple[int, ...] = BUCKETS, *, invariant: bool = True) -> Execution:
        """The fastest way on this device; on a CPU the fastest by which a row's numbers depend on no other row, unless
        `invariant` is false. Raises ModelError if something is missing for it."""
        if device.type != "cuda":
            return cls("invariant" if invariant and has_chained_product() else "sdpa")
        if importlib.util.find_spec("triton") is None:
            raise ModelError("on CUDA devices attention is a Triton kernel: install triton, as CUDA builds of torch do")
        return cls("triton", buckets, graphs=bool(buckets), fused=bool(buckets))

    def build(self, model: Span, num_slots: int) -> tuple[KVPool, Attention]:
        """The pool for a span, and the attention over it. A table's padding is stored in a slot beyond the others.

        Raises ModelError for an attention that this device, or this build of PyTorch, does not compute.
        """
        if self.attention == "invariant" and (model.device.type != "cpu" or not has_chained_product()):
            raise ModelError("invariant attention is computed on CPUs alone, by PyTorch's oneDNN operators")
        beyond = 0 if self.attention in UNSHAPED else 1
        pool = KVPool(len(model.layers), num_slots + beyond, *model.kv_shape, model.dtype, model.device)
        if self.attention == "sdpa":
            return pool, SdpaAttention(pool)
        if self.attention == "invariant":
            return pool, InvariantAttention(pool)
        return pool, TableAttention(pool, num_slots, self._compute(model))

    def _compute(self, model: Span) -> Compute:
        if self.attention == "dense":
            return DenseCompute()
        from pipedec.model.triton_attention import TritonCompute  # not installed where it is of no use

        heads = int(model.architecture.lm.config.num_attention_heads)
        return TritonCompute(model.kv_shape[0], heads, model.kv_shape[1], model.dtype, model.device)
