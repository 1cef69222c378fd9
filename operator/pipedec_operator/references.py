"""A pod that does not start -> the Secrets and ConfigMaps that it waits for, and what is wrong with them. Pure.

A kubelet tells of what it cannot mount in the pod's events alone. These expire, and wake no pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pipedec_operator import causes, names, pods
from pipedec_operator.names import Kind, Object

_STARTING = frozenset({"ContainerCreating", "PodInitializing", "CreateContainerConfigError"})
_NAMED_BY = (".name", ".secretName")
_KINDS = {"secret": names.SECRET, "configMap": names.CONFIG_MAP}


class Reference(NamedTuple):
    """What a pod cannot start without: an object with these keys."""

    kind: Kind
    name: str
    keys: tuple[str, ...]


def needed(pod: Object) -> list[Reference]:
    """What a pod may be waiting for: for its volumes and variables, or for what lets it pull its image. Empty for one
    that runs, ends, or has no node yet. What the operator makes itself is left out."""
    status, spec = pod.get("status", {}), pod["spec"]
    if causes.ended(pod) or "deletionTimestamp" in pod["metadata"] or not spec.get("nodeName"):
        return []
    reasons = {
        each.get("state", {}).get("waiting", {}).get("reason") for each in status.get("containerStatuses", ())
    } or _STARTING
    found: list[Reference] = []
    if reasons & _STARTING:
        found += _volumes(spec)
        found += _variables(spec)
    if reasons & causes.IMAGE_REASONS:
        secrets = spec.get("imagePullSecrets", ())
        found += [Reference(names.SECRET, each["name"], ()) for each in secrets]
    return found


def _volumes(spec: Object) -> Iterator[Reference]:
    for volume in spec.get("volumes", ()):
        if volume["name"] in pods.OWN_VOLUMES:
            continue
        for source in (volume, *volume.get("projected", {}).get("sources", ())):
            yield from _sources(source)


def _sources(source: Object) -> Iterator[Reference]:
    for word, kind in _KINDS.items():
        wanted = source.get(word)
        if wanted and not wanted.get("optional"):
            # A volume of its own calls a Secret's name otherwise than a projected one.
            name = wanted.get("secretName") or wanted["name"]
            yield Reference(kind, name, tuple(item["key"] for item in wanted.get("items", ())))


def _variables(spec: Object) -> Iterator[Reference]:
    for container in spec.get("containers", ()):
        for variable in container.get("env", ()):
            source: dict[str, Any] = variable.get("valueFrom") or {}
            for word, kind in _KINDS.items():
                wanted = source.get(f"{word}KeyRef")
                if wanted and not wanted.get("optional"):
                    yield Reference(kind, wanted["name"], (wanted["key"],))


def field_of(name: str, spec: object, path: str = "spec") -> str:
    """Where a resource's spec names an object; empty where something else made the pod need it, such as its
    ServiceAccount."""
    if isinstance(spec, dict):
        inner = ((f"{path}.{key}", value) for key, value in spec.items())
    elif isinstance(spec, list):
        inner = ((f"{path}[{index}]", value) for index, value in enumerate(spec))
    else:
        return path if spec == name and path.endswith(_NAMED_BY) else ""
    return next((found for field, value in inner if (found := field_of(name, value, field))), "")


def lack(reference: Reference, live: Object | None, field: str) -> str:
    """What is wrong with an object as it is (None: there is none), which this field names, and the remedy; empty if
    nothing is."""
    kind, name, keys = reference
    other = f", or name another in {field}" if field else ""
    if live is None:
        having = f" with the key {' and the key '.join(keys)}" if keys else ""
        return f"{kind.kind} {name} is missing; create it{having}{other}"
    there = {*(live.get("data") or ()), *(live.get("binaryData") or ())}
    missing = [key for key in keys if key not in there]
    return f"{kind.kind} {name} has no key {missing[0]}; add it{other}" if missing else ""
