"""Stages and a draft model without weights: a KV slot holds the token prefix that was computed into it.

They prove what real models prove too, thousands of times faster and with an exact reason: a row whose context is not
exactly its own prefix (a freed or reused slot, a missing ancestor, another request's) becomes NaN, as with real
attention over poisoned slots, and the verifier must never need such a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from draft_service.schedule.guidance import UNGUIDED, Guides
from pipedec.proposals import Children, Proposals
from pipedec.wire.codec import Activation
from pipedec.wire.messages import Batch, Cancel, Close, Commit, Op, Open, Poison, Prefill, Reuse, Verdict
from stage_service.verifier import Verifier
from stage_service.worker import StageResult, tree_rows

VOCABULARY = 24
Prefix = tuple[int, ...]
BROKEN: Prefix = (-1,)


def next_token(prefix: Prefix) -> int:
    """The symbolic target: a token that depends on the whole prefix."""
    return hashlib.blake2b(repr(prefix).encode(), digest_size=2).digest()[0] % VOCABULARY


def continuation(prompt: Prefix, num_tokens: int) -> list[int]:
    """What the target alone would say."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tuple(tokens)))
    return tokens[len(prompt) :]


class SymbolicSpan:
    """The KV of one stage, or of the draft model, and the prefix of every activation row of a batch."""

    def __init__(self) -> None:
        self.reset(1)

    def reset(self, num_slots: int) -> None:
        self._kv: list[Prefix] = [BROKEN] * num_slots
        self._parents: list[Prefix] = [BROKEN] * num_slots  # what each was computed from
        self._committed: dict[int, list[int]] = {}

    def prefixes(self, batch: Batch, alive: Sequence[int]) -> dict[int, Prefix]:
        """Activation row -> its prefix, or BROKEN; computed for the rows that are alive only."""
        wanted, prefixes, row = set(alive), {}, 0
        for op in batch.ops:
            row = self._apply(op, prefixes, row)
        for entry in batch.rows:
            if row in wanted:
                context = [*self._committed[entry.request], *reversed(entry.ancestors)]
                prefixes[row] = self._write(context, entry.token, entry.slot)
            row += 1
        return prefixes

    def _apply(self, op: Op, prefixes: dict[int, Prefix], row: int) -> int:
        match op:
            case Open(request):
                assert request not in self._committed
                self._committed[request] = []
            case Prefill(request, start, tokens, slots):
                committed = self._committed[request]
                assert len(committed) == start
                for token, slot in zip(tokens, slots, strict=True):
                    prefixes[row] = self._write(committed, token, slot)
                    assert prefixes[row] != BROKEN, "a prompt token with a broken context"
                    committed.append(slot)
                    row += 1
            case Reuse(request, start, tokens, slots):
                committed = self._committed[request]
                assert len(committed) == start
                for depth, slot in enumerate(slots, start=start + 1):
                    prefix = self._kv[slot]
                    assert len(prefix) == depth
                    assert prefix[start:] == tokens[: depth - start]
                    committed.append(slot)
            case Commit(request, slots):
                self._committed[request].extend(slots)
            case Close(request):
                del self._committed[request]
            case Poison(slots):
                for slot in slots:
                    self._kv[slot] = BROKEN
        return row

    def _write(self, context: list[int], token: int, slot: int) -> Prefix:
        assert slot not in context
        prefix: Prefix = ()
        for index in context:
            parent = self._parents[index]
            if parent is not prefix and parent != prefix:  # mostly the same object, though it may be long
                prefix = BROKEN
                break
            prefix = self._kv[index]
        self._parents[slot] = prefix
        self._kv[slot] = (*prefix, token) if prefix != BROKEN else BROKEN
        return self._kv[slot]


class SymbolicStage:
    """One stage; as the last one it verifies with the real verifier."""

    def __init__(self, is_first: bool, is_last: bool) -> None:
        self._span = SymbolicSpan()
        self._is_first = is_first
        self._verifier = Verifier(VOCABULARY) if is_last else None
        self._cancelled: set[tuple[int, int]] = set()

    def reset(self, epoch: int, num_slots: int) -> None:
        self._span.reset(num_slots)
        self._cancelled.clear()
        if self._verifier is not None:
            self._verifier.reset()

    def cancel(self, cancel: Cancel) -> None:
        self._cancelled.update(cancel.nodes)

    def step(self, batch: Batch, activation: Activation | None) -> StageResult:
        arriving = None if activation is None else activation.alive
        present = list(range(batch.num_rows)) if arriving is None else arriving.tolist()
        arrived = dict(zip(present, np.frombuffer(activation.data, np.float32), strict=True)) if activation else {}
        nodes = list(zip(batch.rows.request.tolist(), batch.rows.node.tolist(), strict=True))
        first = batch.num_prefill
        alive = [row for row in present if row < first or nodes[row - first] not in self._cancelled]
        prefixes = self._span.prefixes(batch, alive)
        broken = [prefixes[row] == BROKEN or np.isnan(arrived.get(row, 0.0)) for row in alive]
        data = np.where(broken, np.nan, 0.0).astype(np.float32)
        kept = np.array(alive, dtype=np.int32)
        if self._verifier is None:
            return StageResult(len(alive), activation=Activation(data.tobytes(), len(alive), kept))
        decisions = self._verifier.verify(
            batch, torch.arange(len(alive)), tree_rows(batch, kept), _head([prefixes[row] for row in alive], data)
        )
        return StageResult(len(alive), verdict=Verdict(batch.epoch, batch.step, decisions))


def _head(prefixes: list[Prefix], data: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor]:
    def logits(hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.tolist()
        assert not np.isnan(data[rows]).any(), "a row that decides a token saw a slot that was not its own"
        return torch.nn.functional.one_hot(
            torch.tensor([next_token(prefixes[row]) for row in rows]), VOCABULARY
        ).float()

    return logits


class SymbolicDraft:
    """Proposes the right token with a given seeded chance at a random rank, else only wrong ones."""

    def __init__(self, quality: float, children: int = 4, seed: int = 0) -> None:
        self._span = SymbolicSpan()
        self._quality, self._children, self._seed = quality, children, seed

    def reset(self, num_slots: int) -> None:
        self._span.reset(num_slots)

    def propose(self, batch: Batch, guides: Guides = UNGUIDED) -> Proposals:
        first = batch.num_prefill
        prefixes = self._span.prefixes(batch, range(batch.num_rows))
        return Proposals.of([self._children_of(prefixes[first + row]) for row in range(len(batch.rows))])

    def _children_of(self, prefix: Prefix) -> Children:
        digest = hashlib.blake2b(repr((self._seed, prefix)).encode()).digest()
        right = next_token(prefix) if prefix != BROKEN else 0
        wrong = [(right + 1 + byte % (VOCABULARY - 1)) % VOCABULARY for byte in digest[8:]]
        tokens = list(dict.fromkeys(wrong))[: self._children]
        if digest[0] / 256 < self._quality:
            tokens[digest[1] % len(tokens) if self._quality < 1 else 0] = right
        return [(token, -0.3 - rank - digest[2] / 512) for rank, token in enumerate(tokens)]
