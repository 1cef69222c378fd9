"""Desired and observed -> what to do. Pure.

An object is left alone when it *has* what we ask for: what the API server defaults, or others add (a `kubectl rollout
restart`, an injected annotation), is no drift, but in the few maps that an addition would change the meaning of. What
we ask for is stated in full in every apply, so the server drops a field that we no longer name; that we no longer
name it shows in the spec hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pipedec_operator.names import Object

# Maps in which an added entry is drift: it would select other pods, or contradict the rest.
_EXACT = frozenset({"selector", "podSelector", "matchLabels", "strategy"})
# Where one of these is absent, the answer is yes.
_TRUE_WHEN_ABSENT = frozenset({"allowPrivilegeEscalation", "automountServiceAccountToken", "enableServiceLinks"})
# What tells the items of a list apart, most telling first (one volume may be mounted at several paths); lists of items
# with none of these are compared whole.
_LIST_KEYS = ("mountPath", "containerPort", "name", "uid")
_UNITS = {
    "m": Decimal("0.001"), "": Decimal(1),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Apply:
    """State an object that is not there yet, or is not as asked.

    `excess` is a merge patch that first takes away what an apply cannot, because others added it; else empty.
    """

    child: Object
    fresh: bool = False
    excess: Object = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an object of ours that is no longer asked for."""

    child: Object


Action = Apply | Delete


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in order; and what stands in the way, for people."""

    actions: tuple[Action, ...]
    obstacles: tuple[str, ...] = ()


def plan(desired: Iterable[Object], observed: Iterable[Object], uid: str) -> Plan:
    """Actions that turn `observed` (all objects with the resource's label) into `desired`, and nothing else's.

    `uid` is the resource's. An object of that name which belongs to another (an earlier resource of the same name,
    while its children are being deleted) is waited for.
    """
    there = {key(child): child for child in observed}
    wanted = {key(child): child for child in desired}
    actions: list[Action] = []
    obstacles: list[str] = []
    for identity, child in wanted.items():
        live = there.get(identity)
        if live is None:
            actions.append(Apply(child, fresh=True))
        elif owner(live) not in (uid, None):
            obstacles.append(f"{describe(child)} belongs to another resource, and is waited for until it is gone")
        elif not terminating(live) and not satisfied(child, live):
            actions.append(Apply(child, excess=excess(child, live)))
    for identity, child in there.items():
        if identity not in wanted and owner(child) == uid and not terminating(child):
            actions.append(Delete(child))
    return Plan(tuple(actions), tuple(obstacles))


def key(child: Object) -> tuple[str, str]:
    """What tells the children of a resource apart."""
    return child["kind"], child["metadata"]["name"]


def describe(child: Object) -> str:
    return f"{child['kind']} {child['metadata']['name']}"


def owner(child: Object) -> str | None:
    """The uid of an object's controller."""
    references = child["metadata"].get("ownerReferences", [])
    return next((str(each["uid"]) for each in references if each.get("controller")), None)


def terminating(child: Object) -> bool:
    return "deletionTimestamp" in child["metadata"]


def satisfied(desired: object, live: object) -> bool:
    """Whether `live` has all that `desired` says."""
    match desired:
        case dict():
            if not isinstance(live, dict):
                return desired == {} and live is None
            return all(_has(live, name, value) for name, value in desired.items()) and not excess(desired, live)
        case list():
            return _satisfied_list(desired, live if isinstance(live, list) else [])
        case None | False | "" | 0:
            return live is None or live == desired  # the API server leaves out what is empty
        case _:
            return desired == live or _same_quantity(desired, live)


def _has(live: Object, name: str, value: object) -> bool:
    if name in _TRUE_WHEN_ABSENT and name not in live:
        return value is None or value is True
    return satisfied(value, live.get(name))


def excess(desired: Object, live: Object) -> Object:
    """A merge patch that leaves in the exact maps of `live` what `desired` has there, and nothing more."""
    patch: Object = {}
    for name, value in desired.items():
        there = live.get(name)
        if not isinstance(value, dict) or not isinstance(there, dict):
            continue
        inner = excess(value, there)
        if name in _EXACT and (extra := there.keys() - value.keys()):
            inner = value | inner | dict.fromkeys(sorted(extra))
        if inner:
            patch[name] = inner
    return patch


def _satisfied_list(desired: list[Any], live: list[Any]) -> bool:
    for name in _LIST_KEYS:
        if desired and all(isinstance(item, Mapping) and name in item for item in desired):
            found = {item.get(name): item for item in live if isinstance(item, Mapping)}
            return all(satisfied(item, found.get(item[name])) for item in desired)
    return len(desired) == len(live) and all(map(satisfied, desired, live))


def _same_quantity(desired: object, live: object) -> bool:
    """Whether two scalars are the same amount, as 0.5 and 500m: the API server writes quantities its own way."""
    amounts = [_amount(value) for value in (desired, live)]
    return amounts[0] is not None and amounts[0] == amounts[1]


def _amount(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    digits = str(value).rstrip("mkMGTPEi")
    unit = _UNITS.get(str(value)[len(digits) :])
    if unit is None or not digits.replace(".", "", 1).isdecimal() or not digits.isascii():
        return None
    return Decimal(digits) * unit
