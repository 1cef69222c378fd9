"""Requests that have no place in the pipeline, in the order in which they get one. Pure."""

from __future__ import annotations

from collections import OrderedDict

from draft_service.schedule.sequence import Waiting


class Backlog:
    """Who had a place before, and lost it, comes before those that never had one, and suspects come before all others,
    since they must be alone. `len` counts all but the paused. However many there are, nothing takes longer."""

    def __init__(self) -> None:
        self._suspects: OrderedDict[int, Waiting] = OrderedDict()  # by key, as the others
        self._others: OrderedDict[int, Waiting] = OrderedDict()
        self._paused: dict[int, Waiting] = {}

    def __len__(self) -> int:
        return len(self._suspects) + len(self._others)

    def add(self, entry: Waiting) -> None:
        """A new request, at the end."""
        self._others[entry.key] = entry

    def put_back(self, entry: Waiting) -> None:
        """At the front."""
        line = self._suspects if entry.suspicion.is_suspect else self._others
        line[entry.key] = entry
        line.move_to_end(entry.key, last=False)

    def next(self) -> Waiting | None:
        """Whose turn it is."""
        return next(iter((self._suspects or self._others).values()), None)

    def remove(self, key: int) -> Waiting | None:
        """Take a request out, paused or not; None if it is not here."""
        found = (line.pop(key, None) for line in (self._suspects, self._others, self._paused))
        return next((entry for entry in found if entry is not None), None)

    def pause(self, entry: Waiting) -> None:
        """Keep this one, whose turn does not come until `resume`."""
        self._paused[entry.key] = entry

    def resume(self, key: int) -> None:
        """At the front. Keys that are not paused are fine."""
        if (entry := self._paused.pop(key, None)) is not None:
            self.put_back(entry)
