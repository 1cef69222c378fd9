"""Two statuses -> the Events between them: told once, when something changes, never on every pass. Pure."""

from __future__ import annotations

from typing import NamedTuple

from pipedec_operator import causes
from pipedec_operator.causes import condition
from pipedec_operator.names import Object

NORMAL, WARNING = "Normal", "Warning"
_MAX_NOTE = 1024  # of the API


class Transition(NamedTuple):
    """An Event to be posted."""

    type: str
    reason: str
    message: str


def transitions(before: Object, after: Object) -> list[Transition]:
    """What happened to a resource between two of its statuses; `before` is empty when it is new."""
    found: list[Transition] = []
    was, now = condition(before, "Ready"), condition(after, "Ready")
    if not before:
        found.append(Transition(NORMAL, "Created", "the pipeline's children are being made"))
    if now.get("status") == "True" != was.get("status"):
        rolled = before.get("currentRevision", after.get("currentRevision")) != after.get("currentRevision")
        reason = "RollingUpdateCompleted" if rolled else "Ready"
        found.append(Transition(NORMAL, reason, now.get("message", "")))
    of_pods = {row.get("reason") for row in _rows(after)}
    for reason in ("InvalidSpec", "FailedCreate", "Blocked"):
        changed = (was.get("reason"), was.get("message")) != (reason, now.get("message"))
        if now.get("reason") == reason and changed and reason not in of_pods:
            found.append(Transition(WARNING, reason, now.get("message", "")))
    found += _rollout(condition(before, "Progressing"), condition(after, "Progressing"))
    found += _suspension(condition(before, "Suspended"), condition(after, "Suspended"))
    found += _speculation(condition(before, "Degraded"), condition(after, "Degraded"))
    found += _failures(before, after)
    return [Transition(kind, reason, message[:_MAX_NOTE]) for kind, reason, message in found]


def _rollout(was: Object, now: Object) -> list[Transition]:
    if was.get("reason") != "RollingOut" == now.get("reason"):
        return [Transition(NORMAL, "RollingUpdateStarted", "pods are being replaced")]
    if now.get("reason") == "ProgressDeadlineExceeded" != was.get("reason"):
        return [Transition(WARNING, "ProgressDeadlineExceeded", now.get("message", ""))]
    return []


def _suspension(was: Object, now: Object) -> list[Transition]:
    if now.get("status") == "True" != was.get("status"):
        return [Transition(NORMAL, "Suspended", now.get("message", ""))]
    if now.get("reason") == "NotSuspended" and was and was.get("reason") != "NotSuspended":
        return [Transition(NORMAL, "Resumed", "pods are being made again")]
    return []


def _speculation(was: Object, now: Object) -> list[Transition]:
    if now.get("reason") == "DraftUnavailable" != was.get("reason"):
        return [Transition(WARNING, "DraftUnavailable", now.get("message", ""))]
    if was.get("reason") == "DraftUnavailable" and now.get("status") == "False":
        return [Transition(NORMAL, "DraftAvailable", "every draft model predicts again")]
    return []


def _failures(before: Object, after: Object) -> list[Transition]:
    """Components that now fail, or fail otherwise than before."""
    old = {row["name"]: row.get("reason") for row in _rows(before)}
    return [
        Transition(WARNING, "StageFailed" if row["reason"] == causes.CRASHED else row["reason"], _told(row))
        for row in _rows(after)
        if row.get("reason") in causes.FAILURES and old.get(row["name"]) != row["reason"]
    ]


def _rows(status: Object) -> list[Object]:
    return [*status.get("stages", ()), *status.get("drafts", ())]


def _told(row: Object) -> str:
    return f"{row['name']}: {row.get('message', '')}"
