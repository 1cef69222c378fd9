"""One pass over one resource: read what there is, do what is missing, say how it stands.

Level-based: a pass depends on nothing but what it reads, so it may be cut off after any call and begun again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from pipedec.errors import ManifestError
from pipedec.spec import PipeDecDeployment, parse_manifest
from pipedec.spec.report import PipelineReport
from pipedec_operator import keyring, manifests, names, references
from pipedec_operator.causes import condition
from pipedec_operator.cluster import Cluster, ClusterError
from pipedec_operator.components import components
from pipedec_operator.contests import Contests
from pipedec_operator.manifests import Owner, Setting
from pipedec_operator.names import Kind, Object
from pipedec_operator.plan import Action, Apply, describe, key, owner, plan, satisfied, terminating
from pipedec_operator.projection import digest
from pipedec_operator.references import Reference
from pipedec_operator.refusals import Refusals
from pipedec_operator.rollout import endpoint_ports, in_turn
from pipedec_operator.status import Observation, status
from pipedec_operator.transitions import Transition, transitions

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What a pass left: the resource with its status (None: gone, or going), whether to try again later, and the pods
    that it saw."""

    resource: Object | None
    again: bool = False
    pods: Sequence[Object] = ()


def with_optional_kinds(setting: Setting, cluster: Cluster) -> Setting:
    """A setting, with the optional kinds of children that the cluster has. Raises `ClusterError`."""
    return replace(
        setting,
        disruption_budget=cluster.first_known(names.DISRUPTION_BUDGETS),
        pod_monitor=cluster.first_known(names.POD_MONITORS),
    )


def utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reconciler:
    """Passes over the resources of one cluster. Safe for several threads, as long as each resource is in one.

    `reports` is what draft pods said last, by their uid.
    """

    def __init__(
        self,
        cluster: Cluster,
        setting: Setting,
        reports: Mapping[str, PipelineReport] = MappingProxyType({}),
        clock: Callable[[], str] = utc_now,
    ) -> None:
        self._cluster, self._setting, self._reports, self._clock = cluster, setting, reports, clock
        self._rewritten: dict[str, str] = {}
        self._contests = Contests()
        self._refusals = Refusals()

    def look_again(self) -> bool:
        """Takes up optional kinds that the cluster has got since, and lets go of those it has lost. Whether there are
        any. Raises `ClusterError` as `reconcile` does."""
        before, self._setting = self._setting, with_optional_kinds(self._setting, self._cluster)
        return before != self._setting

    def reconcile(self, namespace: str, name: str) -> Outcome:
        """One pass.

        Raises `ClusterError` if the API server could not be reached, is overloaded, or something was changed
        meanwhile: then the pass is to be repeated.
        """
        raw = self._cluster.get(names.RESOURCE, namespace, name)
        if raw is None or terminating(raw):
            return Outcome(None)
        labels, setting = {names.DEPLOYMENT: name}, self._setting
        observed = [child for kind in setting.kinds for child in self._list(kind, namespace, labels)]
        pods = self._cluster.list(names.POD, namespace, labels)
        lacks = self._lacks(raw, pods)
        found = partial(components, pods=pods, reports=self._reports, lacks=lacks)
        try:
            resource = parse_manifest(raw)
        except ManifestError as error:
            # What the last good spec asked for is left as it is, and its state is still told.
            seen = Observation(raw, None, found(observed, observed), self._clock(), invalid=str(error))
            return Outcome(self._report(seen), again=bool(lacks), pods=pods)
        try:
            desired = self._desired(resource, raw, setting, endpoint_ports(observed, pods))
        except keyring.NotOursError as error:  # no keys can be had now; what runs has its own
            there = found(self._without_keys(resource, raw, observed), observed)
            seen = Observation(raw, resource, there, self._clock(), obstacles=(str(error),))
            return Outcome(self._report(seen), again=True, pods=pods)
        except ClusterError as error:
            there = found(self._without_keys(resource, raw, observed), observed)
            seen = Observation(raw, resource, there, self._clock())
            if error.passing:
                self._report_fault(error, seen)
                raise
            _log.warning("refused in namespace %s: %s", namespace, error.message)
            return Outcome(self._report(replace(seen, refused=self._told(raw, [error.message]))), again=True, pods=pods)
        planned = plan(desired, observed, raw["metadata"]["uid"])
        live = {key(child): child for child in observed}
        # Before turns are given: an action that changes nothing would hold its turn for ever.
        useful = [each for each in planned.actions if not self._in_vain(each, live)]
        contested = [each for each in useful if self._is_contested(each, live)]
        useful = [each for each in useful if each not in contested]
        turns = in_turn(useful, observed, pods, self._clock())
        refused, fault = self._execute(turns.now, live, raw["metadata"]["uid"])
        obstacles = (*planned.obstacles, *(_contest(each) for each in contested))
        there = found(desired, live.values(), waiting=turns.waiting)
        told = self._told(raw, refused)
        seen = Observation(raw, resource, there, self._clock(), refused=told, obstacles=obstacles)
        if fault is not None:
            self._report_fault(fault, seen)
            raise fault
        # What was applied in vain changes nothing, so no event would wake those that wait for it.
        unheard = turns.later and any(self._in_vain(each, live) for each in turns.now)
        return Outcome(self._report(seen), again=bool(refused or obstacles or unheard or lacks), pods=pods)

    def _lacks(self, raw: Object, pods: Sequence[Object]) -> dict[str, str]:
        """By the name of each pod that cannot start for want of a Secret or ConfigMap: of which, and what to do. One
        that cannot be looked at counts as there: nothing else waits for that."""
        told: dict[Reference, str] = {}
        lacks: dict[str, list[str]] = {}
        for pod in pods:
            for reference in references.needed(pod):
                if reference not in told:
                    told[reference] = self._lack(reference, raw)
                if told[reference]:
                    lacks.setdefault(pod["metadata"]["name"], []).append(told[reference])
        return {name: "; ".join(dict.fromkeys(each)) for name, each in lacks.items()}

    def _lack(self, reference: Reference, raw: Object) -> str:
        kind, name, namespace = reference.kind, reference.name, raw["metadata"]["namespace"]
        try:
            live = self._cluster.get(kind, namespace, name)
        except ClusterError as error:
            _log.warning("%s %s in namespace %s cannot be looked at: %s", kind.kind, name, namespace, error.message)
            return ""
        return references.lack(reference, live, references.field_of(name, raw.get("spec", {})))

    def _list(self, kind: Kind, namespace: str, labels: dict[str, str]) -> list[Object]:
        try:
            return self._cluster.list(kind, namespace, labels)
        except ClusterError as error:
            if error.code == 404:  # the kind itself is gone: nothing less makes a list fail so
                self.look_again()
            raise

    def _desired(
        self, resource: PipeDecDeployment, raw: Object, setting: Setting, ports: Collection[int]
    ) -> list[Object]:
        """All children. Raises `NotOursError` while there can be no keys, and the `ClusterError` that keeps them from
        being had, named after the Secret."""
        owned_by = _owner_of(raw)
        fresh = manifests.keys_secret(resource, owned_by, setting, keyring.new_keys())
        try:
            secret = keyring.ensure(self._cluster, fresh)
        except ClusterError as error:
            raise _named(error, fresh) from error
        return manifests.children(resource, owned_by, setting, keyring.fingerprint(secret), ports)

    def _without_keys(self, resource: PipeDecDeployment, raw: Object, observed: list[Object]) -> list[Object]:
        """What to tell the state of while there can be no keys: the children that there are; of a new resource, those
        that it asks for."""
        if any(child["kind"] == names.WORKLOAD.kind for child in observed):
            return observed
        return manifests.children(resource, _owner_of(raw), self._setting, "")

    def _execute(
        self, actions: Sequence[Action], live: dict[tuple[str, str], Object], uid: str
    ) -> tuple[list[str], ClusterError | None]:
        """Does what is planned, and keeps `live` true to it. Gives what the API server would not take, for people; and
        the error, named after its object, that it ended at and that may pass. No new pod stands open because its
        network policy was refused."""
        refused: list[str] = []
        unguarded = False
        kinds = {(kind.kind, kind.api_version): kind for kind in names.CHILDREN}
        for action in actions:
            kind, identity = kinds[action.child["kind"], action.child["apiVersion"]], key(action.child)
            if unguarded and kind == names.WORKLOAD and isinstance(action, Apply) and action.fresh:
                continue
            try:
                if not isinstance(action, Apply):
                    self._cluster.delete(kind, action.child)
                    del live[identity]
                else:
                    live[identity] = self._apply(kind, action, uid)
                    self._remember(action.child, live[identity])
                    if not action.fresh:
                        self._contests.note(live[identity]["metadata"]["uid"], digest(action.child), self._clock())
            except ClusterError as error:
                named = _named(error, action.child)
                if named.passing:
                    return refused, named
                refused.append(named.message)
                unguarded |= kind == names.NETWORK_POLICY
                _log.warning("%s refused in namespace %s: %s", type(action).__name__, _place(action), named.message)
            else:
                _log.info("%s %s in namespace %s", type(action).__name__, describe(action.child), _place(action))
        return refused, None

    def _told(self, raw: Object, refused: Sequence[str]) -> str:
        metadata = raw["metadata"]
        return self._refusals.words(metadata["uid"], metadata["generation"], refused, self._clock())

    def _apply(self, kind: Kind, action: Apply, uid: str) -> Object:
        child = action.child
        if action.fresh:
            # Without our label, but perhaps there: ours, edited, or somebody's.
            there = self._cluster.get(kind, child["metadata"]["namespace"], child["metadata"]["name"])
            if there is not None and owner(there) != uid:
                raise ClusterError(403, "NotOurs", "there is one of that name that is not this resource's")
        if action.excess:
            self._cluster.patch(kind, child, action.excess)
        return self._cluster.apply(kind, child)

    def _remember(self, child: Object, result: Object) -> None:
        """Notes what an apply left unlike what it asked for, because something in the cluster rewrites it."""
        uid = result["metadata"]["uid"]
        if satisfied(child, result):
            self._rewritten.pop(uid, None)
        else:
            _log.warning("%s: something in the cluster changes what is applied", describe(child))
            self._rewritten[uid] = _fingerprint(child, result)

    def _in_vain(self, action: Action, live: Mapping[tuple[str, str], Object]) -> bool:
        """Whether the same was applied to the same before, and changed nothing; again would be for ever."""
        there = _changed_by(action, live)
        return there is not None and self._rewritten.get(there["metadata"]["uid"]) == _fingerprint(action.child, there)

    def _is_contested(self, action: Action, live: Mapping[tuple[str, str], Object]) -> bool:
        there = _changed_by(action, live)
        return there is not None and self._contests.is_contested(
            there["metadata"]["uid"], digest(action.child), self._clock()
        )

    def _report(self, seen: Observation) -> Object:
        """Writes the status, and then tells what happened, if anything: the status waits for no event."""
        before, after = seen.before, status(seen)
        if before == after:
            return seen.raw
        written = self._cluster.replace_status(names.RESOURCE, {**seen.raw, "status": after})
        try:
            for transition in transitions(before, after):
                self._tell(seen.raw, transition)
        except ClusterError as error:  # what has happened is in the status too
            _log.warning("events in namespace %s cannot be told: %s", seen.raw["metadata"]["namespace"], error)
        return written

    def _report_fault(self, fault: ClusterError, seen: Observation) -> None:
        """Tells of a fault of the server's that may last (a failing admission webhook), as far as that goes: it may be
        in the way of this too."""
        if fault.code < 500:
            return
        was = condition(seen.before, "Ready")
        known = was.get("reason") == "Blocked" and was["observedGeneration"] == seen.raw["metadata"]["generation"]
        # In the first words: with others every time (a port number), each write would wake the next pass at once.
        told = [was["message"]] if known else [*seen.obstacles, str(fault)]
        with suppress(ClusterError):
            self._report(replace(seen, obstacles=told))

    def _tell(self, raw: Object, transition: Transition) -> None:
        metadata = raw["metadata"]
        # A name of its own for each write of the status.
        told = digest([metadata["uid"], metadata["resourceVersion"], *transition], 16)
        event = {
            "apiVersion": names.EVENT.api_version,
            "kind": names.EVENT.kind,
            "metadata": {"name": f"{metadata['name']}.{told}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": names.RESOURCE.api_version,
                "kind": names.KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": transition.type,
            "reason": transition.reason,
            "message": transition.message,
            "source": {"component": names.MANAGER},
            "firstTimestamp": self._clock(),
            "lastTimestamp": self._clock(),
            "count": 1,
        }
        self._cluster.create(names.EVENT, event)


def _owner_of(raw: Object) -> Owner:
    return Owner(raw["metadata"]["namespace"], raw["metadata"]["uid"])


def _named(error: ClusterError, child: Object) -> ClusterError:
    """The error of a call, with the object that the call was about in its message."""
    return ClusterError(error.code, error.reason, f"{describe(child)}: {error.message}", error.retry_after)


def _changed_by(action: Action, live: Mapping[tuple[str, str], Object]) -> Object | None:
    """The child, as it is, that an action applies to; None if it makes or removes one."""
    return live.get(key(action.child)) if isinstance(action, Apply) else None


def _contest(action: Action) -> str:
    return (
        f"{describe(action.child)} is changed back again and again by something else, perhaps another operator that "
        "keeps this namespace; it is left alone for a minute (`kubectl get --show-managed-fields` tells who writes)"
    )


def _place(action: Action) -> str:
    return str(action.child["metadata"]["namespace"])


def _fingerprint(child: Object, live: Object) -> str:
    """Equal while neither what is asked for nor what there is of it changes. Controllers' own annotations do not count:
    they follow an apply, and the same apply is no more use after them."""
    wanted = child["metadata"]
    metadata = {name: live["metadata"].get(name) for name in wanted if name != "annotations"}
    annotations = live["metadata"].get("annotations", {})
    metadata["annotations"] = {name: annotations.get(name) for name in wanted.get("annotations", {})}
    return digest([child, {k: v for k, v in live.items() if k not in ("metadata", "status")}, metadata])
