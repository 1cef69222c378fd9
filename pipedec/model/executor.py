"""Runs batches through a span: ops in, rows in, rows out. No sockets, no clocks, no tree logic."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipedec.errors import ProtocolError
from pipedec.model.attention import PoolCache
from pipedec.model.context import Bools, Contexts, Limits
from pipedec.model.kv_pool import KVPool
from pipedec.model.plan import Planner
from pipedec.model.span import Span
from pipedec.wire.messages import Batch, Poison, Prefill

GoesOn = Callable[[int], bool]


class SpanExecutor:
    """A span of layers with its KV pool. Every stage, and the draft, is one of these fed by a stream of batches."""

    def __init__(self, model: Span, num_slots: int) -> None:
        self.model = model
        self.num_slots = num_slots
        self.pool = KVPool(len(model.layers), num_slots, *model.kv_shape, model.dtype, model.device)
        self._cache = PoolCache(self.pool, model.span[0])
        self._contexts = Contexts(Limits(num_slots, model.vocab_size, model.max_context))
        self._planner = Planner(num_slots, model.device)
        self._layers = tuple(model.layers)
        self._rotary = _Rotary(model)

    def reset(self) -> None:
        """Forget all requests: a new epoch begins."""
        self._contexts.reset()
        self._planner.reset()

    @torch.inference_mode()
    def execute(
        self,
        batch: Batch,
        hidden: torch.Tensor | None,
        alive: npt.NDArray[np.integer[Any]] | None = None,
        goes_on: GoesOn = lambda layer: True,
    ) -> torch.Tensor | None:
        """Hidden states [alive rows, hidden] after this span, before any norm.

        `hidden` are those of the span before, None for a span that embeds. `alive`, ascending, are the activation
        rows that are present (None: all). `goes_on` is asked before each layer, by its index in the span; when it
        says no, for rows that nobody needs any more, the rest is left out and None returned. Raises ProtocolError,
        with nothing changed, for an impossible batch.
        """
        present = _present(batch, alive)
        count = int(present.sum())
        self._check_hidden(hidden, count)
        contexts = self._contexts.apply(batch, present)
        for op in batch.ops:
            if isinstance(op, Poison):
                self._planner.poison(op.slots)
                self.pool.fill(torch.tensor(op.slots, device=self.model.device), float("nan"))
        if hidden is None:
            hidden = self._embed(batch, present)
        if not count:
            return hidden
        order = np.flatnonzero(present)
        positions = np.empty(count, np.int64)
        for context in contexts:
            positions[np.searchsorted(order, context.rows)] = context.positions
        plan = self._cache.plan = self._planner.plan(contexts, order, self._contexts.owners)
        if plan.stale is not None:
            self.pool.fill(plan.stale, 0.0)
        output = self._forward(hidden, torch.from_numpy(positions).to(self.model.device), goes_on)
        if output is None:
            self._planner.abandon(contexts)
        return output

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and LM head: [rows, hidden] -> float32 logits [rows, vocabulary]."""
        return logits_of(self.model.architecture.norm, self.model.architecture.lm_head, hidden)

    def _check_hidden(self, hidden: torch.Tensor | None, count: int) -> None:
        if (hidden is None) != self.model.first:
            raise ProtocolError("hidden states go to every stage but the first")
        if hidden is not None and hidden.shape != (count, self.model.hidden_size):
            raise ProtocolError(
                f"hidden states are {tuple(hidden.shape)}, the batch has {count} rows of {self.model.hidden_size}"
            )

    def _embed(self, batch: Batch, present: Bools) -> torch.Tensor:
        prefilled = [token for op in batch.ops if isinstance(op, Prefill) for token in op.tokens]
        tokens = np.concatenate([np.array(prefilled, np.int64), batch.rows.token])[present]
        embedded: torch.Tensor = self.model.architecture.embedding(torch.from_numpy(tokens).to(self.model.device))
        return embedded

    def _forward(self, hidden: torch.Tensor, positions: torch.Tensor, goes_on: GoesOn) -> torch.Tensor | None:
        hidden, positions = hidden.to(self.model.device, self.model.dtype)[None], positions[None]
        rotated = self._rotary(hidden, positions)
        for index, (layer, embeddings) in enumerate(zip(self._layers, rotated, strict=True)):
            if not goes_on(index):
                return None
            output = layer(
                hidden,
                attention_mask=self._cache,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                **embeddings,
            )
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden[0]


class _Rotary:
    """The rotary embeddings of a batch's positions, as keyword arguments of each layer."""

    def __init__(self, model: Span) -> None:
        self._module = model.architecture.rotary
        types = getattr(model.architecture.lm.config, "layer_types", None)
        by_type = self._module is not None and "layer_type" in inspect.signature(self._module.forward).parameters
        self._types = [types[i] if by_type and types else None for i in range(*model.span)]

    def __call__(self, hidden: torch.Tensor, positions: torch.Tensor) -> list[dict[str, Any]]:
        if self._module is None:
            return [{} for _ in self._types]
        computed = {}
        for kind in set(self._types):
            extra = {} if kind is None else {"layer_type": kind}
            computed[kind] = {"position_embeddings": self._module(hidden, positions, **extra)}
        return [computed[kind] for kind in self._types]


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
