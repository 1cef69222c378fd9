"""Who waits is found at once, however many do."""

from __future__ import annotations

from draft_service.generation import GenerationRequest
from draft_service.schedule.backlog import Backlog
from draft_service.schedule.sequence import Waiting

REQUEST = GenerationRequest((1,), 1)


class Key(int):
    """Counts what it is compared with."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Key.compared += 1
        return int(self) == other

    __hash__ = int.__hash__


def test_thousands_that_leave_at_once_are_not_searched_for() -> None:
    """As when all that came together reach their deadline together."""
    keys = [Key(number) for number in range(2000)]
    backlog = Backlog()
    for key in keys:
        backlog.add(Waiting(key, REQUEST))
    Key.compared = 0
    for key in reversed(keys[1000:]):
        found = backlog.remove(key)
        assert found is not None
        assert found.key is key
    assert len(backlog) == 1000
    for key in keys[:1000]:
        following = backlog.next()
        assert following is not None
        assert following.key is key
        backlog.remove(key)
    assert len(backlog) == 0
    assert Key.compared < 10 * len(keys)


def test_who_lost_a_place_is_next_and_suspects_are_before_all() -> None:
    backlog = Backlog()
    for key in (0, 1):
        backlog.add(Waiting(key, REQUEST))
    suspect = Waiting(2, REQUEST)
    for _ in range(2):
        suspect.suspicion.lose(0, since_start=0, alone=False)
    backlog.put_back(suspect)
    backlog.put_back(Waiting(3, REQUEST))
    backlog.pause(Waiting(4, REQUEST))
    assert len(backlog) == 4
    backlog.resume(4)
    order = []
    while (entry := backlog.next()) is not None:
        order.append(entry.key)
        assert backlog.remove(entry.key) is entry
    assert order == [2, 4, 3, 0, 1]
