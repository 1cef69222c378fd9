"""In which words it is told that the API server refuses children. Pure.

Some webhooks say something else every time: the id of a request, or which of several was first. A status that followed
them would be written at every pass, and each write wakes the next pass at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

WINDOW = timedelta(minutes=5)


class Refusals:
    """What was told lately, by the uid of the resource. Times are those of the API, in UTC."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, list[str], str, datetime]] = {}

    def words(self, uid: str, generation: int, refused: Sequence[str], now: str) -> str:
        """One text of all that is refused (`Service lion: why`). While the same objects are refused of the same
        generation, it is that of before, for `WINDOW`: then it may be another reason after all."""
        moment = datetime.fromisoformat(now)
        for each in [each for each, (*_, since) in [*self._told.items()] if moment - since > WINDOW]:
            self._told.pop(each, None)
        if not refused:
            self._told.pop(uid, None)
            return ""
        objects = [message.partition(": ")[0] for message in refused]
        before = self._told.get(uid)
        if before is not None and before[:2] == (generation, objects):
            return before[2]
        text = "; ".join(refused)
        self._told[uid] = generation, objects, text, moment
        return text
