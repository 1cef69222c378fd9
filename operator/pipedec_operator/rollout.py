"""Which of the planned actions must wait, so that a change fails no request. Pure.

The pipelines of a resource are replaced one at a time: one that serves is touched only while all others do. Within a
pipeline the draft pod goes first. It ends its requests with the stages that it has, so these stay until it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipedec_operator import names
from pipedec_operator.causes import ended, is_ready
from pipedec_operator.names import Object
from pipedec_operator.plan import Action, Apply, Delete, terminating
from pipedec_operator.pods import http_port

_LOST_AFTER = timedelta(minutes=1)
_NEEDED_BY_PODS = frozenset({names.CONFIG_MAP.kind, names.SERVICE.kind})


@dataclass(frozen=True, slots=True)
class Turns:
    """Actions for this pass, and those for a later one."""

    now: tuple[Action, ...]
    later: tuple[Action, ...] = ()

    @property
    def waiting(self) -> frozenset[str]:
        """Names of the Deployments that are left as they are for now."""
        return frozenset(
            action.child["metadata"]["name"] for action in self.later if action.child["kind"] == names.WORKLOAD.kind
        )


def in_turn(actions: Sequence[Action], observed: Iterable[Object], pods: Iterable[Object], now: str) -> Turns:
    """Splits a resource's planned actions by whose turn it is; `observed` are its children, `now` the time in UTC.

    The next pass is for the pods' and Deployments' own events to wake.
    """
    groups: dict[str, _Group] = {}
    for action in actions:
        if action.child["kind"] == names.WORKLOAD.kind:
            groups.setdefault(_group(action.child), _Group()).actions.append(action)
    for child in observed:
        if child["kind"] == names.WORKLOAD.kind:
            groups.setdefault(_group(child), _Group()).workloads.append(child)
    for pod in pods:
        if _is_draft(pod) and not ended(pod) and not _lost(pod, now):
            groups.setdefault(_group(pod), _Group()).drafts.append(pod)
    waiting = _waiting(groups)
    draining = {index for index, group in groups.items() if group.draft_goes}
    later = [
        action
        for action in actions
        if action.child["kind"] == names.WORKLOAD.kind
        and (_group(action.child) in waiting or (_group(action.child) in draining and not _is_draft(action.child)))
    ]
    if later:  # pods that stay for now may have to be started again with what they have
        later += [each for each in actions if isinstance(each, Delete) and each.child["kind"] in _NEEDED_BY_PODS]
    return Turns(tuple(each for each in actions if each not in later), tuple(later))


def endpoint_ports(observed: Iterable[Object], pods: Iterable[Object]) -> set[int]:
    """Where draft pods answer that are there, or that come of their Deployments as these are: other ports than the
    resource names, until a change of `serving.port` has reached all of them."""
    specs = [child["spec"]["template"]["spec"] for child in observed if child["kind"] == names.WORKLOAD.kind]
    specs += [pod["spec"] for pod in pods if not ended(pod)]
    return {port for spec in specs if (port := http_port(spec)) is not None}


def _waiting(groups: dict[str, _Group]) -> set[str]:
    """Pipelines that serve, are to be interrupted, and must not be yet."""
    down = {index for index, group in groups.items() if not group.leaving and not group.up}
    waiting = set()
    for index, group in sorted(groups.items()):
        if not (group.interrupted and group.serving):
            continue
        if down - {index}:
            waiting.add(index)
        else:
            down.add(index)
    return waiting


class _Group:
    """One pipeline: what is planned for its Deployments, these as they are, and its draft pods."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.workloads: list[Object] = []
        self.drafts: list[Object] = []

    @property
    def leaving(self) -> bool:
        """Whether it is scaled in, or suspended."""
        deleted = sum(isinstance(action, Delete) for action in self.actions)
        return 0 < deleted == len(self.workloads) or any(
            isinstance(action, Apply) and action.child["spec"]["replicas"] == 0 for action in self.actions
        )

    @property
    def interrupted(self) -> bool:
        """Whether pods of it are to be replaced."""
        return not self.leaving and any(not (isinstance(each, Apply) and each.fresh) for each in self.actions)

    @property
    def serving(self) -> bool:
        return any(is_ready(pod) for pod in self.drafts)

    @property
    def up(self) -> bool:
        """Whether all its pods are those of its Deployments as they are, and available."""
        return bool(self.workloads) and all(
            _rolled_out(each) and each["status"].get("availableReplicas", 0) > 0 for each in self.workloads
        )

    @property
    def draft_goes(self) -> bool:
        """Whether it has a draft pod that is about to end, and must be given the time."""
        if not self.drafts:
            return False
        workloads = [each for each in self.workloads if _is_draft(each)]
        planned = any(_is_draft(action.child) for action in self.actions)
        return planned or any(map(terminating, self.drafts)) or not (workloads and all(map(_rolled_out, workloads)))


def _rolled_out(workload: Object) -> bool:
    """Whether the Deployment controller has made the pod that the Deployment now asks for."""
    status = workload.get("status", {})
    seen = status.get("observedGeneration", 0) >= workload["metadata"].get("generation", 1)
    return bool(seen and status.get("updatedReplicas", 0) > 0)


def _lost(pod: Object, now: str) -> bool:
    """Whether a pod should have ended long ago: its node does not answer, and may never do. The clocks of the API
    server, who said when it should, and of the operator may differ."""
    told = pod["metadata"].get("deletionTimestamp")
    return told is not None and datetime.fromisoformat(now) - datetime.fromisoformat(told) > _LOST_AFTER


def _group(child: Object) -> str:
    return str(child["metadata"].get("labels", {}).get(names.GROUP_INDEX, ""))


def _is_draft(child: Object) -> bool:
    return bool(child["metadata"].get("labels", {}).get(names.COMPONENT) == names.DRAFT)
