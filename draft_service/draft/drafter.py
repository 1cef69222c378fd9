"""The draft model: evaluates a batch of nodes and proposes children for each. No sockets.

It runs the same executor as a stage, over all its layers, on the same slot numbers, fed by batches of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from draft_service.schedule.guidance import UNGUIDED, Guides
from pipedec.errors import ModelError
from pipedec.model.executor import SpanExecutor
from pipedec.model.grammar import Allowed
from pipedec.model.staging import sent
from pipedec.proposals import Proposals
from pipedec.wire.messages import Batch

GUIDING_SECONDS = 0.02  # of one run; ordinary grammars take 0.03 to 0.1 ms a row

Adjust = Callable[[Batch, torch.Tensor], torch.Tensor]


class Proposer(Protocol):
    """Anything that can propose children: a draft model, or in tests one that is always wrong or always right."""

    def reset(self, num_slots: int) -> None:
        """Forget all requests and hold that many KV slots: batches begin anew."""

    def propose(self, batch: Batch, guides: Guides) -> Proposals:
        """Children for each tree row of the batch, whose ops and prefill tokens are applied first: such as its guide
        allows. Returns when the device is done, so that the time until then is the run's. Whatever is raised means that
        there are no predictions until it is reset."""


class Drafter:
    """A draft model of any size that shares the target's vocabulary.

    `children`: proposals per node. `adjust`: applied to the logits [rows, vocabulary] of a batch's tree rows before
    they are ranked; the benchmarks make drafts of a chosen quality with it. `rank` gives children of hidden states.
    """

    def __init__(self, executor: SpanExecutor, children: int, adjust: Adjust | None = None) -> None:
        self._executor = executor
        self._children = children
        self._adjust = adjust
        self._spoilt = set[int]()  # requests without a sound row since there was one last
        self.rank = executor.of_rows(lambda rows: self._likeliest(executor.head(rows)))

    def reset(self, num_slots: int) -> None:
        self._executor.reset()
        self._spoilt.clear()

    @torch.inference_mode()
    def propose(self, batch: Batch, guides: Guides = UNGUIDED) -> Proposals:
        hidden = self._executor.execute(batch, None)
        if not len(batch.rows) or hidden is None:
            self._executor.staging.wait()
            return Proposals.of(())
        rows = hidden[batch.num_prefill :]
        if self._adjust is None and not guides:
            best = self.rank(rows)
        else:
            logits = self._executor.head(rows)
            logits = logits if self._adjust is None else self._adjust(batch, logits)
            best = self._likeliest(_guided(logits, guides))
        tokens, logprobs = (tensor.numpy() for tensor in self._executor.staging.download(*best))
        sound = np.isfinite(logprobs).any(-1, keepdims=True)  # NaN spoils its whole row
        self._judge(batch, bool(sound.any()))
        # Copied: proposals are kept as long as their node, and memory that a device copies to is for transit.
        return Proposals(tokens.copy(), np.where(sound, logprobs, -np.inf))

    def _judge(self, batch: Batch, sound: bool) -> None:
        """A text that overflows is spoilt in every run, and costs no other request its predictions. A model that is
        spoilt shows in the next request."""
        self._spoilt = set() if sound else self._spoilt | set(batch.rows.request.tolist())
        if len(self._spoilt) > 1:
            raise ModelError("the draft model's logits are not numbers")

    def _likeliest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and log-probabilities [rows, children], likeliest first."""
        return self._executor.likeliest(logits, min(self._children, logits.shape[-1]))


def _guided(logits: torch.Tensor, guides: Guides) -> torch.Tensor:
    """Logits [rows, vocabulary] with -inf where a row's guide forbids a token. Rows that the time is over for, as with
    a grammar that takes long, are left as they are."""
    end = time.monotonic() + GUIDING_SECONDS
    allowed: dict[int, Allowed] = {}
    for row, guide in guides.items():
        if time.monotonic() > end:
            break
        if (possible := guide.allowed()) is not None:
            allowed[row] = possible
    if not allowed:
        return logits
    forbidden = ~sent(torch.from_numpy(np.stack(list(allowed.values()))), logits.device)
    index = sent(torch.tensor(list(allowed)), logits.device)
    return logits.index_copy(0, index, logits[index].masked_fill(forbidden, float("-inf")))
