"""Runs batches through a span: ops in, rows in, rows out. No sockets, no clocks, no tree logic."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipedec.errors import ProtocolError
from pipedec.model.attention import PoolCache
from pipedec.model.context import Bools, Context, Contexts, Ints, Limits
from pipedec.model.execution import Execution
from pipedec.model.layers import GoesOn, Layers
from pipedec.model.packed import pack
from pipedec.model.span import Span
from pipedec.model.staging import make_staging
from pipedec.model.static import CudaGraphs, Progress, Record, StaticRows, StaticSpan, cut_of, plain
from pipedec.model.table_attention import TableAttention
from pipedec.wire.messages import Batch, Poison, Prefill

_log = logging.getLogger(__name__)

RowFunction = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class SpanExecutor:
    """A span of layers with its KV pool. Every stage, and the draft, is one of these fed by a stream of batches.

    `execution` says how; None chooses for the device. `progress` is told of the programs that are recorded first. On a
    CPU the span's weights are packed where they can be, and the model's own given up.
    """

    def __init__(
        self, model: Span, num_slots: int, execution: Execution | None = None, progress: Progress = lambda done: None
    ) -> None:
        self.model = model
        self.num_slots = num_slots
        self.execution = execution or Execution.on(model.device)
        self.staging = make_staging(model.device)
        self.pool, self._attention = self.execution.build(model, num_slots)
        products = [*model.layers, model.architecture.lm_head] if model.last else model.layers
        if self.execution.attention == "triton":
            from pipedec.model.streamed import stream  # Triton is not installed where it is of no use

            stream(products)
        elif not self.execution.buckets:
            pack(products)
        self._contexts = Contexts(Limits(num_slots, model.vocab_size, model.max_context))
        self._layers = Layers(model)
        self._record: Record = CudaGraphs(model.device) if self.execution.graphs else plain
        self._static = self._prepared(progress)

    def reset(self) -> None:
        """Forget all requests: a new epoch begins."""
        self._contexts.reset()
        self._attention.reset()

    @torch.inference_mode()
    def execute(
        self,
        batch: Batch,
        hidden: torch.Tensor | None,
        alive: npt.NDArray[np.integer[Any]] | None = None,
        goes_on: GoesOn | None = None,
    ) -> torch.Tensor | None:
        """Hidden states [alive rows, hidden] after this span, before any norm.

        `hidden` are those of the span before, None for a span that embeds. `alive`, ascending, are the activation
        rows that are present (None: all). `goes_on` is asked before each layer, or before a few of them, by its index
        in the span; when it says no, for rows that nobody needs any more, the rest is left out and None returned.
        Raises ProtocolError, with nothing changed, for an impossible batch.
        """
        present = _present(batch, alive)
        count = int(present.sum())
        self._check_hidden(hidden, count)
        contexts = self._contexts.apply(batch, present)
        for op in batch.ops:
            if isinstance(op, Poison):
                self._attention.poison(op.slots)
                self.pool.fill(torch.tensor(op.slots, device=self.model.device), float("nan"))
        if not count:
            return torch.empty(0, self.model.hidden_size, dtype=self.model.dtype, device=self.model.device)
        tokens = _tokens(batch)[present] if hidden is None else None
        if hidden is not None:
            hidden = self.staging.upload(hidden)
        order = np.flatnonzero(present)
        if self._static is not None and self._static.fits(contexts, count):
            output = self._static.run(contexts, order, tokens, hidden, goes_on)
        else:
            output = self._run(contexts, order, tokens, hidden, goes_on)
        if output is None:
            self._attention.abandon(contexts)
        return output

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and LM head: [rows, hidden] -> float32 logits [rows, vocabulary]."""
        return logits_of(self.model.architecture.norm, self.model.architecture.lm_head, hidden)

    def likeliest(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (int64) and log-probabilities [rows, count], likeliest first, of float32 logits [rows, vocabulary],
        where `count` <= vocabulary."""
        if self.execution.attention == "triton":
            from pipedec.model.triton_likeliest import likeliest  # Triton is not installed where it is of no use

            return likeliest(logits, count)
        values, tokens = logits.topk(count)
        return tokens, values - logits.logsumexp(-1, keepdim=True)

    @torch.inference_mode()
    def of_rows(self, function: RowFunction) -> RowFunction:
        """The function, of hidden states [rows, hidden] each for itself, run as the span is: in programs, if it is."""
        if self._static is None:
            return function
        like = torch.zeros(1, self.model.hidden_size, dtype=self.model.dtype, device=self.model.device)
        return StaticRows(function, like, self.execution.buckets, self._record)

    def _prepared(self, progress: Progress) -> StaticSpan | None:
        """The span's programs, if it has any. A family whose layers cannot be compiled is run without that; one whose
        layers look at their numbers on the CPU, as to choose experts, cannot be recorded, and is run layer by layer."""
        if not self.execution.buckets:
            return None
        assert isinstance(self._attention, TableAttention)
        for fused in (True, False) if self.execution.fused else (False,):
            static = StaticSpan(
                self.model,
                Layers(self.model, fused),
                self._attention,
                self.execution.buckets,
                self.staging,
                self._record,
            )
            try:
                static.prepare(progress)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError) or not (fused or self.execution.graphs):
                    raise
                without = "compiled layers" if fused else "CUDA graphs"
                _log.warning("%s runs without %s, slower: %s", self.model.architecture.name, without, error)
            else:
                return static
        return None

    def _check_hidden(self, hidden: torch.Tensor | None, count: int) -> None:
        if (hidden is None) != self.model.first:
            raise ProtocolError("hidden states go to every stage but the first")
        if hidden is not None and hidden.shape != (count, self.model.hidden_size):
            raise ProtocolError(
                f"hidden states are {tuple(hidden.shape)}, the batch has {count} rows of {self.model.hidden_size}"
            )

    def _run(
        self,
        contexts: list[Context],
        order: Ints,
        tokens: Ints | None,
        hidden: torch.Tensor | None,
        goes_on: GoesOn | None,
    ) -> torch.Tensor | None:
        """Any number of rows, layer by layer."""
        positions = np.empty(len(order), np.int64)
        for context in contexts:
            positions[np.searchsorted(order, context.rows)] = context.positions
        self._attention.begin(contexts, order)
        if tokens is not None:
            hidden = self.model.architecture.embedding(self.staging.upload(torch.from_numpy(tokens)))
        assert hidden is not None, "a span that does not embed is given hidden states"
        cache = PoolCache(self._attention, self.model.span[0])
        place = self.staging.upload(torch.from_numpy(positions))
        return self._layers(hidden.to(self.model.dtype), place, cache, goes_on=goes_on and self._in_step(goes_on))

    def _in_step(self, goes_on: GoesOn) -> GoesOn:
        """Asks once when the layers before are computed, not merely queued: whoever is told wants to know."""
        cut = cut_of(len(self.model.layers))

        def ask(layer: int) -> bool:
            if layer == cut:
                self.staging.wait()
            return goes_on(layer)

        return ask


def _tokens(batch: Batch) -> Ints:
    prefilled = [token for op in batch.ops if isinstance(op, Prefill) for token in op.tokens]
    return np.concatenate([np.array(prefilled, np.int64), batch.rows.token])


def _present(batch: Batch, alive: npt.NDArray[np.integer[Any]] | None) -> Bools:
    present = np.ones(batch.num_rows, np.bool_)
    if alive is not None:
        if len(alive) and (alive.min() < 0 or alive.max() >= len(present) or (np.diff(alive) <= 0).any()):
            raise ProtocolError(f"alive rows rise within [0, {len(present)})")
        present[:] = False
        present[alive] = True
    return present


def logits_of(norm: nn.Module, lm_head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = lm_head(norm(hidden))
    return logits.float()
