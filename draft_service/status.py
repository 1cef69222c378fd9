"""How the head stands, for the other threads of its process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeadStatus:
    """Where the pipeline stands; replaced as a whole, so that any thread may read it.

    `reason` says why it is not ready, `degraded` why it decodes without the draft model asked for; empty
    when it is, and does not.
    `missing`: the stages that are not there.
    """

    ready: bool = False
    ever_ready: bool = False
    epoch: int = 0
    reason: str = "starting"
    degraded: str = ""
    missing: tuple[int, ...] = ()
