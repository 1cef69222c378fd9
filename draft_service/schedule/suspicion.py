"""Which request it is that stages die of. Pure counts: no clock, no sockets.

A request that kills its stage again and again (a fault in a kernel that one input meets, more memory than there is)
would take all others through one recovery after the other. What a lost epoch says of a request is little, for most are
lost for other reasons, so requests are told apart by an experiment:

    lost `SUSPECT` times with rows in flight, and little progress between  ->  it runs alone, and without predictions,
    until it has decided `CLEARED` more tokens                             ->  it is cleared, and runs like any other
    lost `GUILTY` times alone, without a token since it was started anew   ->  it is ended, with an error

Alone, without predictions and without what was computed for others, a request does the same every time, so what is
deterministic shows; and that two faults of another cause hit it between its start and its next token, twice in a row,
is hardly possible.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SUSPECT = 2  # losses
CLEARED = 8  # tokens
GUILTY = 2  # losses
SPECULATES = 4  # losses in all; who has seen as many goes on without predictions, since these may be what kills


@dataclass(slots=True)
class Suspicion:
    """What is held against one request, over all its restarts. `losses` are those since it was last cleared."""

    losses: int = 0
    fruitless: int = 0  # the latest of them that it met alone, without a token since its start
    total: int = 0
    _cleared_at: int = field(default=0, init=False)  # output tokens

    @property
    def is_suspect(self) -> bool:
        """Whether it must run alone."""
        return self.losses >= SUSPECT

    @property
    def is_guilty(self) -> bool:
        """Whether it must be ended."""
        return self.fruitless >= GUILTY

    @property
    def speculates(self) -> bool:
        """Whether it may have predictions in flight, and begin with what was computed for others."""
        return not self.is_suspect and self.total < SPECULATES

    def lose(self, num_output: int, *, since_start: int, alone: bool) -> None:
        """An epoch was lost with rows of it in flight, after `num_output` tokens, `since_start` of them in this epoch;
        `alone`: no other request had any."""
        self.losses += 1
        self.total += 1
        if since_start:
            self.fruitless = 0
        elif alone:
            self.fruitless += 1
        self._cleared_at = num_output + CLEARED

    def forswear(self) -> None:
        """Only what it says itself counts for this request: a prediction, or another request, spoilt what it read."""
        self.total = max(self.total, SPECULATES)

    def decide(self, num_output: int) -> None:
        """It has so many output tokens now."""
        if num_output >= self._cleared_at:
            self.losses = self.fruitless = 0
