"""What the head logs of its formation and its requests, each thing once."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from draft_service.formation import Action, Send
from draft_service.schedule.sequence import Sequence
from pipedec.logs import fields
from pipedec.wire.codec import FromStage
from pipedec.wire.messages import Refused, Register

_log = logging.getLogger(__name__)


class Journal:
    """Stages register, and are refused, again and again; a line is written when something is new."""

    def __init__(self) -> None:
        self._registered: dict[int, str] = {}  # incarnation by stage
        self._refused: dict[int, str] = {}  # reason by stage, of those of this pipeline

    def heard(self, message: FromStage, actions: Iterable[Action]) -> None:
        """A stage's message, and what is done about it."""
        if not isinstance(message, Register) or not 0 <= message.stage < 64:  # else a liar could fill the memory
            return
        stage = message.stage
        refusal = next((each.message for each in actions if isinstance(each, Send)), None)
        if isinstance(refusal, Refused):
            if self._refused.get(stage) != refusal.reason:
                self._refused[stage] = refusal.reason
                _log.warning("stage refused", extra=fields(stage=stage, reason=refusal.reason))
        elif self._registered.get(stage) != message.incarnation:
            self._refused.pop(stage, None)
            self._registered[stage] = message.incarnation
            span = f"{message.layers[0]}-{message.layers[1] - 1}"
            _log.info(
                "stage registered",
                extra=fields(stage=stage, layers=span, slots=message.slots, incarnation=message.incarnation),
            )

    def admitted(self, sequence: Sequence, epoch: int | None, step: int) -> None:
        """A request got a place in the pipeline: for the first time, or again after a fault."""
        again = len(sequence.output) or None
        _log.info(
            "request resumed" if again else "request admitted",
            extra=fields(request=sequence.request.id, epoch=epoch, step=step, tokens=again),
        )
