"""Spans of one model chained in a process, driven by hand-made batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.loader import SpanModel
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import NO_PARENT, Batch, Commit, Op, Open, Prefill, Reuse, Row, Rows

GREEDY = SamplingParams()


class Chain:
    """Executors of consecutive spans; `run` gives the last hidden states, `logits` those after the head."""

    def __init__(
        self, folder: Path, cuts: Sequence[int], num_slots: int = 256, execution: Execution | None = None
    ) -> None:
        self.spans = [
            SpanExecutor(SpanModel.load(folder, (start, end), dtype=torch.float32), num_slots, execution)
            for start, end in itertools.pairwise(cuts)
        ]

    def run(
        self, ops: Sequence[Op] = (), rows: Sequence[Row] = (), alive: Sequence[Sequence[int] | None] | None = None
    ) -> torch.Tensor:
        """`alive`, if given, holds for each span the rows of the batch that it still has."""
        batch, hidden = Batch(0, 0, tuple(ops), Rows.of(rows)), None
        before = np.arange(batch.num_rows)
        for i, span in enumerate(self.spans):
            kept = None if alive is None or alive[i] is None else np.array(alive[i], dtype=np.int64)
            if kept is not None and hidden is not None:
                hidden = hidden[np.searchsorted(before, kept)]
            before = before if kept is None else kept
            hidden = span.execute(batch, hidden, None if kept is None else kept)
        assert hidden is not None
        return hidden

    def logits(self, ops: Sequence[Op] = (), rows: Sequence[Row] = ()) -> torch.Tensor:
        return self.spans[-1].head(self.run(ops, rows))


class Decoder:
    """Greedy decoding of one request, a root row at a time, on slots drawn from `slots`."""

    def __init__(self, chain: Chain, request: int, prompt: Sequence[int], slots: Iterator[int]) -> None:
        self.chain, self.request, self.slots = chain, request, slots
        self.prompt, self.tokens = tuple(prompt), list[int]()
        self.used: list[int] = []
        self.pending: tuple[int, ...] = ()

    def prefill(self, chunk: int, reused: Sequence[int] = ()) -> None:
        """`reused`: slots in which the prompt's first tokens lie already."""
        begun: list[Op] = [Open(self.request, GREEDY, len(self.prompt))]
        if reused:
            begun.append(Reuse(self.request, 0, self.prompt[: len(reused)], tuple(reused)))
            self.used += reused
        for start in range(len(reused), len(self.prompt), chunk):
            tokens = self.prompt[start : start + chunk]
            ops, begun = begun, []
            ops.append(Prefill(self.request, start, tokens, self._take(len(tokens))))
            hidden = self.chain.run(ops)
        self.decide(hidden[-1])

    def row(self) -> tuple[list[Op], Row]:
        """The ops and the row that follow the newest token."""
        position = len(self.prompt) + len(self.tokens) - 1
        ops: list[Op] = [Commit(self.request, self.pending)] if self.pending else []
        (slot,) = self.pending = self._take(1)
        return ops, Row(self.request, position, NO_PARENT, self.tokens[-1], position, slot, ())

    def decide(self, hidden: torch.Tensor) -> None:
        self.tokens.append(int(self.chain.spans[-1].head(hidden[None])[0].argmax()))

    def generate(self, count: int) -> list[int]:
        while len(self.tokens) < count:
            ops, row = self.row()
            self.decide(self.chain.run(ops, [row])[0])
        return self.tokens

    def _take(self, count: int) -> tuple[int, ...]:
        taken = tuple(next(self.slots) for _ in range(count))
        self.used += taken
        return taken


def scattered(num_slots: int = 256, seed: int = 0) -> Iterator[int]:
    """All slots in a random order: the worst an allocator could do."""
    return iter(np.random.default_rng(seed).permutation(num_slots).tolist())
