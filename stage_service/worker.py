"""One stage's work: a batch and its activation in, the next activation or a verdict out. No sockets, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipedec.model.executor import SpanExecutor
from pipedec.model.grammar import Grammars
from pipedec.model.layers import GoesOn
from pipedec.model.memory import is_out_of_memory, release_cached_memory
from pipedec.model.tensors import from_buffer, to_buffer
from pipedec.wire.codec import Activation
from pipedec.wire.messages import Batch, Cancel, Int32, Verdict
from stage_service.verifier import LMHead, Verifier

Progress = Callable[[float], None]  # told, before each layer, the share of the layers that is done; may call `cancel`


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a step produced: an activation to pass on, or on the last stage a verdict. `rows` were computed."""

    rows: int
    activation: Activation | None = None
    verdict: Verdict | None = None


class StageWorker:
    """A span of the target's layers with its KV pool, and on the last stage the verifier, with what it needs for
    requests that have a grammar."""

    def __init__(self, executor: SpanExecutor, is_last: bool, grammars: Grammars | None = None) -> None:
        self._executor = executor
        model = executor.model
        self.width, self.dtype = model.hidden_size, model.dtype
        self._verifier = Verifier(model.vocab_size, model.device, grammars) if is_last else None
        self._head = _prepared_head(executor) if is_last else executor.head
        self._cancelled: dict[tuple[int, int], int] = {}  # (request, node) -> the last step that may carry it

    def reset(self, epoch: int, num_slots: int) -> None:
        """A new epoch: forget all requests; the weights stay. `num_slots` is at most what was offered."""
        self._executor.reset()
        self._cancelled.clear()
        if self._verifier is not None:
            self._verifier.reset()

    def cancel(self, cancel: Cancel) -> None:
        """Rows that cannot become tokens any more need not be computed."""
        for node in cancel.nodes:
            self._cancelled[node] = cancel.step

    def step(self, batch: Batch, activation: Activation | None, progress: Progress | None = None) -> StageResult:
        """Apply the batch's ops, run the layers on the rows that are alive, and verify on the last stage.

        Returns when the device is done, so that the time until then is the step's. `activation` is None on stage 0,
        which embeds the tokens. A batch of which every row is cancelled while it is computed is left where it is.
        Raises `ProtocolError` for an impossible batch, and `MemoryError` where the device has not enough; after either
        only `reset` makes sense.
        """
        try:
            return self._step(batch, activation, progress)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            message = str(error)
        release_cached_memory()  # not before the tensors of the step are gone with its traceback
        raise MemoryError(message)

    @torch.inference_mode()
    def _step(self, batch: Batch, activation: Activation | None, progress: Progress | None) -> StageResult:
        arriving = None if activation is None else activation.alive
        alive, kept = self._drop_cancelled(batch, arriving)
        hidden = None
        if activation is not None:
            hidden = from_buffer(activation.data, self.dtype, (activation.rows, self.width))
            hidden = hidden if kept is None else hidden[torch.from_numpy(kept)]
        hidden = self._executor.execute(batch, hidden, alive, self._goes_on(batch, progress))
        if hidden is None:
            alive = np.zeros(0, np.int32)
            hidden = torch.empty(0, self.width, dtype=self.dtype, device=self._executor.model.device)
        if self._verifier is None:
            (sent,) = self._executor.staging.download(hidden)
            return StageResult(len(hidden), activation=Activation(to_buffer(sent), len(hidden), alive))
        decisions = self._verifier.verify(batch, hidden, tree_rows(batch, alive), self._head)
        self._executor.staging.wait()  # nothing was downloaded if nothing was decided
        return StageResult(len(hidden), verdict=Verdict(batch.epoch, batch.step, decisions))

    def _goes_on(self, batch: Batch, progress: Progress | None) -> GoesOn:
        if progress is None:
            return lambda layer: True
        num_layers = len(self._executor.model.layers)
        nodes = None if batch.num_prefill else set(_node_list(batch))

        def goes_on(layer: int) -> bool:
            before = len(self._cancelled)
            progress(layer / num_layers)
            return nodes is None or len(self._cancelled) == before or not self._cancelled.keys() >= nodes

        return goes_on

    def _drop_cancelled(self, batch: Batch, arriving: Int32 | None) -> tuple[Int32 | None, Int32 | None]:
        """The rows to compute, as indices of the batch's rows and of the arriving activation's; None means all."""
        self._cancelled = {node: step for node, step in self._cancelled.items() if step >= batch.step}
        if not self._cancelled:
            return arriving, None
        first = batch.num_prefill
        dead = [first + row for row, node in enumerate(_node_list(batch)) if node in self._cancelled]
        if not dead:
            return arriving, None
        present = np.arange(batch.num_rows, dtype=np.int32) if arriving is None else arriving
        keep = ~np.isin(present, dead)
        return present[keep], np.flatnonzero(keep).astype(np.int32)


def _prepared_head(executor: SpanExecutor) -> LMHead:
    run = executor.of_rows(lambda rows: (executor.head(rows),))
    return lambda rows: run(rows)[0]


def _node_list(batch: Batch) -> list[tuple[int, int]]:
    """(request, node) of each tree row."""
    return list(zip(batch.rows.request.tolist(), batch.rows.node.tolist(), strict=True))


def tree_rows(batch: Batch, alive: Int32 | None) -> dict[int, int]:
    """Tree row -> its index among the activation rows that are present."""
    first = batch.num_prefill
    present = range(batch.num_rows) if alive is None else alive.tolist()
    return {row - first: index for index, row in enumerate(present) if row >= first}
