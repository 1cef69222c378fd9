"""Stages without weights, that decide what a recorded target decided; exact for greedy decoding.

A row that decides a token lies on the answer's own path, or the verifier would not ask for it, and there the
recording says what comes next. All else is real: the scheduler, the batches, cancellation, the verifier's rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from benchmarks.recording import Transcript
from pipedec.wire.codec import Activation
from pipedec.wire.messages import Batch, Cancel, Close, Int32, Op, Open, Prefill, Reuse, Verdict
from stage_service.verifier import Verifier
from stage_service.worker import StageResult, tree_rows


class Transcripts:
    """Which transcript each request of a stream of batches follows."""

    def __init__(self, transcripts: Sequence[Transcript]) -> None:
        self._by_prompt = {transcript.prompt: transcript for transcript in transcripts}
        self.clear()

    def clear(self) -> None:
        """Forget all requests."""
        self._num_prompt: dict[int, int] = {}
        self._tokens: dict[int, list[int]] = {}
        self._found: dict[int, Transcript] = {}

    def apply(self, ops: Iterable[Op]) -> None:
        """Learn of requests that begin and end."""
        for op in ops:
            match op:
                case Open(request, _, num_prompt):
                    self._num_prompt[request] = num_prompt
                    self._tokens[request] = []
                case Prefill(request, _, tokens, _) | Reuse(request, _, tokens, _) if request not in self._found:
                    self._tokens[request].extend(tokens)
                case Close(request):
                    for table in (self._num_prompt, self._tokens, self._found):
                        table.pop(request, None)
                case _:
                    pass

    def of(self, request: int, token: int) -> Transcript:
        """The transcript of a request, of which `token` is the first tree row's: perhaps the prompt's last."""
        if request not in self._found:
            prompt = (*self._tokens[request], token)[: self._num_prompt[request]]
            self._found[request] = self._by_prompt[prompt]
        return self._found[request]


class ReplayStage:
    """One stage of a recorded target; the last one verifies with the real verifier."""

    def __init__(self, transcripts: Sequence[Transcript], vocab_size: int, is_last: bool) -> None:
        self._transcripts = Transcripts(transcripts)
        self._verifier = Verifier(vocab_size) if is_last else None
        self._vocab_size = vocab_size
        self._cancelled: set[tuple[int, int]] = set()
        self._cancelled_until = -1

    def reset(self, epoch: int, num_slots: int) -> None:
        self._transcripts.clear()
        self._cancelled.clear()
        if self._verifier is not None:
            self._verifier.reset()

    def cancel(self, cancel: Cancel) -> None:
        self._cancelled.update(cancel.nodes)
        self._cancelled_until = max(self._cancelled_until, cancel.step)

    def step(self, batch: Batch, activation: Activation | None) -> StageResult:
        alive = self._drop_cancelled(batch, None if activation is None else activation.alive)
        rows = batch.num_rows if alive is None else len(alive)
        if self._verifier is None:
            return StageResult(rows, activation=Activation(b"", rows, alive))
        self._transcripts.apply(batch.ops)
        present = {row: row for row in tree_rows(batch, alive)}
        everything = torch.arange(batch.num_rows)
        decisions = self._verifier.verify(batch, everything, present, lambda which: self._head(batch, which))
        return StageResult(rows, verdict=Verdict(batch.epoch, batch.step, decisions))

    def _drop_cancelled(self, batch: Batch, arriving: Int32 | None) -> Int32 | None:
        if batch.step > self._cancelled_until:
            self._cancelled.clear()
        if not self._cancelled:
            return arriving
        nodes = zip(batch.rows.request.tolist(), batch.rows.node.tolist(), strict=True)
        dead = {row for row, node in enumerate(nodes, batch.num_prefill) if node in self._cancelled}
        if not dead:
            return arriving
        present = range(batch.num_rows) if arriving is None else arriving.tolist()
        return np.array([row for row in present if row not in dead], dtype=np.int32)

    def _head(self, batch: Batch, which: torch.Tensor) -> torch.Tensor:
        """Logits of the tree rows `which`, on their answers' path every one: all weight on the recorded token."""
        rows = which.tolist()
        logits = torch.zeros(len(rows), self._vocab_size)
        for index, row in enumerate(rows):
            transcript = self._transcripts.of(int(batch.rows.request[row]), int(batch.rows.token[row]))
            logits[index, transcript.next_token(int(batch.rows.position[row]))] = 1.0
        return logits
