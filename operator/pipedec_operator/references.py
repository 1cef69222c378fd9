"""A pod that does not start -> the Secrets and ConfigMaps that it waits for, and what is wrong with them. Pure.

A kubelet tells of what it cannot mount in the pod's events alone. These expire, and wake no pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pipedec_operator import causes, names, pods
from pipedec_operator.names import Kind, Object

_STARTING = frozenset({"ContainerCreating", "PodInitializing", "CreateContainerConfigError"})
_SECTIONS = {names.STAGE: "spec.pipeline", names.DRAFT: "spec.draft"}
_KINDS = {"secret": names.SECRET, "configMap": names.CONFIG_MAP}


class Reference(NamedTuple):
    """What a pod cannot start without: an object with these keys, which `field` of the resource names."""

    kind: Kind
    name: str
    keys: tuple[str, ...]
    field: str


def needed(pod: Object) -> list[Reference]:
    """What a pod may be waiting for: for its volumes and variables, or for what lets it pull its image. Empty for one
    that runs, ends, or has no node yet. What the operator makes itself is left out."""
    status, spec = pod.get("status", {}), pod["spec"]
    if causes.ended(pod) or "deletionTimestamp" in pod["metadata"] or not spec.get("nodeName"):
        return []
    reasons = {
        each.get("state", {}).get("waiting", {}).get("reason") for each in status.get("containerStatuses", ())
    } or _STARTING
    section = _SECTIONS.get(pod["metadata"].get("labels", {}).get(names.COMPONENT, ""), "spec")
    found: list[Reference] = []
    if reasons & _STARTING:
        found += _volumes(spec, section)
        found += _variables(spec, section)
    if reasons & causes.IMAGE_REASONS:
        secrets = spec.get("imagePullSecrets", ())
        found += [Reference(names.SECRET, each["name"], (), "spec.images.pullSecrets") for each in secrets]
    return found


def _volumes(spec: Object, section: str) -> Iterator[Reference]:
    for volume in spec.get("volumes", ()):
        if volume["name"] in pods.OWN_VOLUMES:
            continue
        field = "spec.serving.apiKeySecretRef" if volume["name"] == pods.API_KEY_VOLUME else f"{section}.volumes"
        for source in (volume, *volume.get("projected", {}).get("sources", ())):
            yield from _sources(source, field)


def _sources(source: Object, field: str) -> Iterator[Reference]:
    for word, kind in _KINDS.items():
        wanted = source.get(word)
        if wanted and not wanted.get("optional"):
            # A volume of its own calls a Secret's name otherwise than a projected one.
            name = wanted.get("secretName") or wanted["name"]
            yield Reference(kind, name, tuple(item["key"] for item in wanted.get("items", ())), field)


def _variables(spec: Object, section: str) -> Iterator[Reference]:
    for container in spec.get("containers", ()):
        for variable in container.get("env", ()):
            field = "spec.model.tokenSecretRef" if variable["name"] == pods.TOKEN_VARIABLE else f"{section}.env"
            source: dict[str, Any] = variable.get("valueFrom") or {}
            for word, kind in _KINDS.items():
                wanted = source.get(f"{word}KeyRef")
                if wanted and not wanted.get("optional"):
                    yield Reference(kind, wanted["name"], (wanted["key"],), field)


def lack(reference: Reference, live: Object | None) -> str:
    """What is wrong with an object as it is (None: there is none), and the remedy; empty if nothing is."""
    kind, name, keys, field = reference
    if live is None:
        having = f" with the key {' and the key '.join(keys)}" if keys else ""
        return f"{kind.kind} {name} is missing; create it{having}, or name another in {field}"
    there = {*(live.get("data") or ()), *(live.get("binaryData") or ())}
    missing = [key for key in keys if key not in there]
    if not missing:
        return ""
    return f"{kind.kind} {name} has no key {missing[0]}; add it, or name another in {field}"
