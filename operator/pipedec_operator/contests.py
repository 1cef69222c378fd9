"""Whether somebody changes a child back again and again: another operator that keeps the same namespace, a tool that
deploys from a repository. Pure.

Drift is repaired at once. Two that do so with different minds would go on several times a second, and restart pods each
time; so who has applied the same to the same child often lets it be for a while, and says so.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta

OFTEN = 5
WINDOW = timedelta(minutes=1)


class Contests:
    """What was applied lately, by the uid of the child. Times are those of the API, in UTC."""

    def __init__(self) -> None:
        self._applied: dict[str, tuple[str, deque[datetime]]] = {}

    def note(self, uid: str, asked: str, now: str) -> None:
        """This was applied to a child that was there; `asked` is a digest of it."""
        moment = datetime.fromisoformat(now)
        for each in [each for each, (_, times) in [*self._applied.items()] if moment - times[-1] > WINDOW]:
            self._applied.pop(each, None)
        before, times = self._applied.get(uid, ("", deque[datetime]()))
        if before != asked:
            times = deque(maxlen=OFTEN)
        times.append(moment)
        self._applied[uid] = asked, times

    def is_contested(self, uid: str, asked: str, now: str) -> bool:
        """Whether this was applied `OFTEN` times within `WINDOW`."""
        before, times = self._applied.get(uid, ("", deque[datetime]()))
        return before == asked and len(times) == OFTEN and datetime.fromisoformat(now) - times[0] <= WINDOW
