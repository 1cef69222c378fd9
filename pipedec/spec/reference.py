"""Every field of the manifest as a page for people: `python -m pipedec.spec.reference > docs/manifest.md`.

Written from the same schema as the CRD, so that what the page says is what the API server and every service read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipedec.spec.crd import Schema, structural_schema
from pipedec.spec.deployment import PipeDecDeployment
from pipedec.spec.pod import PodSettings

_HEADER = """# The manifest

One resource, `PipeDecDeployment`, says everything, to `pipedec up` as to the operator. `pipedec validate -f FILE` names
every mistake at once, `pipedec doctor -f FILE` also looks at the models, and in a cluster `kubectl explain pdd.spec`
tells the same as this page. A field that is not here is refused, not ignored.

Only `spec.model.uri` and one of `spec.pipeline.stages` and `spec.pipeline.layers` are needed. Fields without a default
may be left out; what that means is said with each.

"""
_POD = "Settings of a pod"
_POD_PATHS = ("spec.draft", "spec.pipeline", "spec.pipeline.overrides[]")


def render() -> str:
    """The page, as Markdown."""
    spec = structural_schema(PipeDecDeployment)["properties"]["spec"]
    pod = structural_schema(PodSettings)
    sections = [*_sections("spec", spec, frozenset(pod["properties"]))]
    where = ", ".join(f"`{path}`" for path in _POD_PATHS)
    sections.append(f"## {_POD}\n\nThe fields of {where} that say how a pod is placed and run.\n\n{_table(pod)}")
    sections += _sections("pod", pod, frozenset(), top=False)
    page = _HEADER + "\n".join(sections) + "\nWritten by `python -m pipedec.spec.reference` from the code.\n"
    return page.replace("\n\n\n", "\n\n")


def _sections(path: str, schema: Schema, shared: frozenset[str], top: bool = True) -> Iterator[str]:
    """A section for the object itself, then for every object below it. Fields in `shared` have a section elsewhere."""
    own = {name: each for name, each in schema["properties"].items() if path not in _POD_PATHS or name not in shared}
    if top:
        more = f"\nAnd the [settings of a pod](#{_POD.lower().replace(' ', '-')}).\n" if path in _POD_PATHS else ""
        yield f"## {path}\n\n{schema.get('description', '')}\n\n{_table(schema | {'properties': own})}{more}"
    for name, each in own.items():
        below, suffix = (each.get("items", {}), "[]") if each.get("type") == "array" else (each, "")
        if "properties" in below:
            yield from _sections(f"{path}.{name}{suffix}", below, shared)


def _table(schema: Schema) -> str:
    required = schema.get("required", ())
    rows = ["| Field | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name, each in schema["properties"].items():
        default = "needed" if name in required else _default(each)
        rows.append(f"| `{name}` | {_type(each)} | {default} | {each.get('description', '')} |")
    rules = [f"- {rule['message']}." for rule in schema.get("x-kubernetes-validations", ())]
    return "\n".join([*rows, "", *rules] if rules else rows) + "\n"


def _default(schema: Schema) -> str:
    default = schema.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{str(default).lower()}`" if isinstance(default, bool) else f"`{default}`"


def _type(schema: Schema) -> str:
    """What may be written, with its limits."""
    if values := schema.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if schema.get("type") == "array":
        return f"list of {_plural(schema['items'])}"
    if schema.get("type") == "object":
        return f"map of {_plural(schema['additionalProperties'])}" if "additionalProperties" in schema else "object"
    return f"{schema['type']}{_limits(schema)}"


def _plural(schema: Schema) -> str:
    kind = _type(schema)
    return "quantities" if kind == "quantity" else f"{kind.partition(' ')[0]}s"


def _limits(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    return f", {low} to {high}" if low is not None and high is not None else ""


if __name__ == "__main__":
    print(render(), end="")
