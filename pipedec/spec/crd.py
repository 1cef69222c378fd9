"""The CustomResourceDefinition, generated from the manifest's models: `python -m pipedec.spec.crd > crds/...`.

A *structural* schema is narrower than JSON schema: no references, no unions with null, no `additionalProperties`
beside `properties`, boolean bounds. What pydantic writes beyond that is rewritten here, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from pipedec.spec.deployment import API_VERSION, KIND, PipeDecDeployment
from pipedec.spec.status import Status

Schema = dict[str, Any]

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "pipedecdeployments"
_READY = '.status.conditions[?(@.type=="Ready")]'
_COLUMNS = (
    # name, type, priority (0: always, 1: with -o wide), path, description
    ("Ready", "string", 0, f"{_READY}.status", "Whether requests are served as the manifest asks"),
    ("Stages", "string", 0, ".status.readyStages", "Ready stages of all"),
    ("Model", "string", 0, ".spec.model.uri", "The target"),
    ("Reason", "string", 0, f"{_READY}.reason", "Why it is ready, or not"),
    ("Restarts", "integer", 0, ".status.restarts", "Restarts of all containers"),
    ("Age", "date", 0, ".metadata.creationTimestamp", "Time since creation"),
    ("Endpoint", "string", 1, ".status.url", "Address inside the cluster"),
    ("Draft", "string", 1, ".spec.draft.uri", "The draft model, where it is one of its own"),
    ("Revision", "string", 1, ".status.currentRevision", "Revision that serves"),
)


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition, for every Kubernetes that has apiextensions.k8s.io/v1."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _resource_schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": text}
            # The API server drops a 0, and tools that deploy from a repository would miss it for ever.
            | ({"priority": priority} if priority else {})
            for name, kind, priority, path, text in _COLUMNS
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["pdd"],
                "categories": ["pipedec"],
            },
            "versions": [version],
        },
    }


def render() -> str:
    """The CRD as YAML, as committed in `crds/`."""
    text = yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return f"# Generated from pipedec/spec by `python -m pipedec.spec.crd`. Do not edit.\n{text}"


class _Dumper(yaml.SafeDumper):
    """Writes what occurs twice twice: anchors and aliases are not for people."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _resource_schema() -> Schema:
    schema = structural_schema(PipeDecDeployment)
    for key in ("apiVersion", "kind"):
        schema["properties"][key] = {"type": "string", "description": schema["properties"][key]["description"]}
    name = schema["properties"]["metadata"]["properties"]["name"]
    schema["properties"]["metadata"] = {"type": "object", "properties": {"name": name}}  # the rest is the server's own
    schema["properties"]["status"] = structural_schema(Status)
    schema["required"] = ["spec"]
    return schema


def structural_schema(model: type[BaseModel]) -> Schema:
    """A model's JSON schema, as a structural schema."""
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    schema = _resolved(schema, definitions)
    for key, plain in (("properties", True), ("items", False), ("additionalProperties", False)):
        if isinstance(inner := schema.get(key), dict):
            schema[key] = (
                {name: _structural(each, definitions) for name, each in inner.items()}
                if plain
                else _structural(inner, definitions)
            )
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    if isinstance(default := schema.get("default"), dict):
        schema["default"] = {}  # each field below has its own default
    elif default is None or default in ([], ""):  # Kubernetes 1.20 reads a default of "" as null
        schema.pop("default", None)
    for name in ("$defs", "title", *(["additionalProperties"] if "properties" in schema else [])):
        schema.pop(name, None)
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    return {key: schema[key] for key in sorted(schema, key=_rank)}


def _resolved(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The schema itself, out of references and of unions with null; what is said beside them goes before."""
    schema = dict(schema)
    while True:
        if reference := schema.pop("$ref", None):
            schema = definitions[reference.removeprefix("#/$defs/")] | schema
        elif branches := schema.pop("anyOf", None):
            (branch,) = (each for each in branches if each != {"type": "null"})
            schema = branch | schema
        else:
            return schema


def _rank(key: str) -> tuple[int, str]:
    """Keys in the order a person reads them: what it is, then its limits, then what is below."""
    order = ("description", "type", "format", "enum", "default", "required", "properties", "items")
    return (order.index(key) if key in order else len(order), key)


if __name__ == "__main__":
    print(render(), end="")
