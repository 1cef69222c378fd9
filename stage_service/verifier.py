"""Verification on the last stage: which rows' outputs count, and which tokens they decide. No sockets.

Per request there is a *cursor*, the newest accepted node, and the token that its output decided. A row matches if its
parent is the cursor and its token is that token; then it becomes the cursor, and its own output decides the next
token. Hits and misses are this one rule: after a miss the scheduler sends the decided token as a new row, which
matches when it arrives. So a hit needs no round trip, and one batch may decide several tokens of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from pipedec.errors import ModelError, ProtocolError, RequestError
from pipedec.model.grammar import Grammars, Matcher
from pipedec.model.sampling import Choice, Chosen, History, Wanted, choose
from pipedec.model.staging import sent
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import NO_PARENT, Batch, Close, Decision, Op, Open, Prefill, Reuse

NO_TOKEN = -1  # what a request expects that no token can follow

TOGETHER = 64  # rows whose logits cost a GPU what one row's do: the LM head's weights are read once for all

LMHead = Callable[[torch.Tensor], torch.Tensor]  # hidden [rows, width] -> float32 logits [rows, vocabulary]


@dataclass(slots=True)
class Tracked:
    """A request at the last stage. `expected` is None until the request's first row, which always matches."""

    sampling: SamplingParams
    history: History
    cursor: int = NO_PARENT
    expected: int | None = None


class Verifier:
    """Cursors of all requests. `verify` takes every batch of an epoch, in order. Without `grammars` no request may have
    one. Of up to `together` rows the logits are computed at once, though few may matter; absent: on a GPU alone."""

    def __init__(
        self,
        vocab_size: int,
        device: torch.device | str = "cpu",
        grammars: Grammars | None = None,
        together: int | None = None,
    ) -> None:
        self._vocab_size, self._device, self._grammars = vocab_size, device, grammars
        on_gpu = torch.device(device).type == "cuda"
        self._together = (TOGETHER if on_gpu else 0) if together is None else together
        self._tracked: dict[int, Tracked] = {}

    def reset(self) -> None:
        """Forget all requests: a new epoch begins."""
        self._tracked.clear()

    def verify(self, batch: Batch, hidden: torch.Tensor, present: dict[int, int], head: LMHead) -> tuple[Decision, ...]:
        """Tokens that this batch decides. A request whose logits are not numbers fails, one whose grammar can be
        followed no further is refused; the others do not care. Raises `ProtocolError` for a request that cannot be.

        hidden: [activation rows present, width], the last layer's output; present: tree row -> its index in `hidden`;
        head: applied to the rows that matter, which are few (one per request and accepted token), or to all at once.
        """
        self._apply(batch.ops)
        columns = zip(batch.rows.request.tolist(), batch.rows.parent.tolist(), batch.rows.token.tolist(), strict=True)
        # A row that is not present was cancelled: nothing below it, or of its request, will be asked for.
        arrived = {key: row for row, key in enumerate(columns) if row in present}
        requests = dict.fromkeys(request for request, _, _ in arrived)
        decided: dict[int, Decision] = {}
        known: dict[int, torch.Tensor] = {}  # logits of rows
        while matches := [(q, row) for q in requests if (row := self._awaited(q, arrived)) is not None]:
            rows = [row for _, row in matches]
            if missing := [row for row in rows if row not in known]:
                asked = list(arrived.values()) if len(arrived) <= self._together else missing
                index = sent(torch.tensor([present[row] for row in asked]), hidden.device)
                known |= zip(asked, head(hidden[index]), strict=True)
            wanted = [self._move(request, batch, row) for request, row in matches]
            choices = choose(torch.stack([known[row] for row in rows]), wanted)
            for (request, _), choice in zip(matches, choices, strict=True):
                decided[request] = self._decide(decided.get(request, Decision(request, ())), choice)
            requests = dict.fromkeys(request for request, _ in matches)
        return tuple(decided.values())

    def _apply(self, ops: Iterable[Op]) -> None:
        for op in ops:
            match op:
                case Open(request, sampling, num_prompt):
                    matcher = self._matcher(sampling) if sampling.grammar else None
                    history = History(sampling, num_prompt, self._vocab_size, self._device, matcher)
                    self._tracked[request] = Tracked(sampling, history)
                case Prefill(request, _, tokens, _) | Reuse(request, _, tokens, _):
                    self._tracked[request].history.extend(tokens)
                case Close(request):
                    self._tracked.pop(request, None)
                case _:
                    pass

    def _matcher(self, sampling: SamplingParams) -> Matcher:
        if self._grammars is None:
            raise ProtocolError("a request has a grammar, but the model's tokenizer cannot be read for one")
        return self._grammars.matcher(sampling.grammar, sampling.end_tokens)

    def _awaited(self, request: int, arrived: dict[tuple[int, int, int], int]) -> int | None:
        """The row that the request's cursor waits for, if it is in this batch."""
        tracked = self._tracked[request]
        if tracked.expected is not None:
            return arrived.get((request, tracked.cursor, tracked.expected))
        return next((row for (q, parent, _), row in arrived.items() if (q, parent) == (request, NO_PARENT)), None)

    def _move(self, request: int, batch: Batch, row: int) -> Wanted:
        """The row is the cursor now; what is wanted is the token after it."""
        tracked = self._tracked[request]
        tracked.cursor = int(batch.rows.node[row])
        tracked.history.extend((int(batch.rows.token[row]),))
        return Wanted(tracked.sampling, int(batch.rows.position[row]) + 1, tracked.history)

    def _decide(self, before: Decision, choice: Choice) -> Decision:
        """`before`, and what the cursor decides: a token, or that there is none."""
        tracked = self._tracked[before.request]
        tracked.expected = choice.token if isinstance(choice, Chosen) else NO_TOKEN
        match choice:
            case Chosen(token, logprobs):
                scored = before.logprobs if logprobs is None else (*before.logprobs, logprobs)
                return replace(before, tokens=(*before.tokens, token), logprobs=scored)
            case ModelError():
                return replace(before, failure=str(choice))
            case RequestError():
                return replace(before, refusal=str(choice))
