"""What a stage tells its head, and when. No sockets and no clock: messages and the time go in, messages come out.

A stage says every `BEAT_SECONDS` which epoch it is in. Whenever the head speaks of another epoch than that, or does not
speak at all, the stage registers (again): the head may be new, or may never have heard of it. Registering twice
is harmless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pipedec.wire.codec import FromStage
from pipedec.wire.messages import BEAT_SECONDS, NO_EPOCH, Heartbeat, Joined, Refused, Register

REFUSED_SECONDS = 5.0  # until a stage that was refused asks again: the head may be replaced by one that takes it
SILENCE_SECONDS = 15.0  # without a word from the head the connection is made anew


@dataclass(slots=True)
class Session:
    """A stage's membership. `epoch` is the one it has joined."""

    register: Register
    epoch: int = field(default=NO_EPOCH, init=False)
    refusal: str = field(default="", init=False)
    _registered: bool = field(default=False, init=False)
    _spoken_to: bool = field(default=False, init=False)
    _silent_from: float = field(default=math.inf, init=False)
    _next_beat: float = field(default=-math.inf, init=False)
    _next_register: float = field(default=-math.inf, init=False)

    def hear(self, message: object, now: float) -> None:
        """Any message from the head."""
        self.notice(now)
        if isinstance(message, Refused):
            self.refusal, self._registered = message.reason, False
            self._next_register = now + REFUSED_SECONDS
        elif isinstance(message, Heartbeat):
            self._registered = message.epoch == self.epoch
            if self._registered:
                self.refusal = ""

    def notice(self, now: float) -> None:
        """The head has said something, which may be heard later."""
        self._spoken_to, self._silent_from = True, now + SILENCE_SECONDS

    def join(self, epoch: int) -> Joined:
        """The state is reset and the successor connected: what to tell the head."""
        self.epoch, self.refusal, self._registered = epoch, "", True
        return Joined(epoch, self.register.stage)

    def leave(self) -> None:
        """This stage cannot go on in its epoch; the head is told with the next beat, at once."""
        self.epoch, self._next_beat = NO_EPOCH, -math.inf

    def connect(self, now: float) -> None:
        """A connection was made: register, and give the head time to answer."""
        self._silent_from, self._registered, self._next_register = now + SILENCE_SECONDS, False, now

    def is_silent(self, now: float) -> bool:
        """Whether the head has said nothing for so long that the connection should be made anew."""
        return now > self._silent_from

    def due(self, now: float, step: int, seconds: tuple[tuple[int, float], ...]) -> list[FromStage]:
        """What to send now. `step` is the last one finished, `seconds` the compute time by row bucket."""
        messages: list[FromStage] = []
        if not self._registered and now >= self._next_register:
            self._next_register = now + BEAT_SECONDS
            messages.append(self.register)
        if now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            messages.append(Heartbeat(self.epoch, self.register.stage, step, seconds))
        return messages

    def timeout(self, now: float) -> float:
        """Seconds until `due` has something to say."""
        return max(0.0, min(self._next_beat, math.inf if self._registered else self._next_register) - now)

    def not_ready_reason(self) -> str:
        """Why this stage does not compute, for a person; empty when it does."""
        if self.refusal:
            return f"the head refuses this stage: {self.refusal}"
        if self.epoch == NO_EPOCH:
            return "waiting for the other stages" if self._spoken_to else "waiting for the head"
        return ""
