"""Reading a manifest: YAML to `PipeDecDeployment`, and every problem as a dotted path with a remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipedec.errors import ManifestError
from pipedec.spec.base import PATTERN_REMEDIES, Strict
from pipedec.spec.deployment import API_VERSION, KIND, PipeDecDeployment

# What the API server adds to an object's metadata; a person does not write it, and we do not read it.
_SERVER_METADATA = frozenset({
    "uid", "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
    "managedFields", "ownerReferences", "finalizers", "generateName", "selfLink",
})  # fmt: skip


class InvalidManifest(ManifestError):
    """Everything that is wrong with a manifest; `errors` has each, `field` is the first one's."""

    def __init__(self, errors: Iterable[ManifestError]) -> None:
        self.errors = tuple(errors)
        first = self.errors[0]
        super().__init__(first.field, first.problem, first.remedy)
        if len(self.errors) > 1:
            lines = "\n".join(f"  {error}" for error in self.errors)
            self.args = (f"{len(self.errors)} problems in the manifest:\n{lines}",)


def load_manifest(source: str | Path) -> PipeDecDeployment:
    """Reads a manifest from a path, or from text (recognised by its line breaks). Raises `ManifestError`."""
    if isinstance(source, str) and "\n" in source:
        text, name = source, "manifest"
    else:
        name = str(source)
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ManifestError(name, f"cannot be read ({reason})", "Give the path of a YAML manifest") from error
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except RecursionError as error:
        raise ManifestError(name, "is nested too deeply to be a manifest") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError) as error:  # the latter of tags, as !!float, on nonsense
        raise ManifestError(name, f"is not valid YAML: {error}") from error
    found = [d for d in documents if not isinstance(d, Mapping) or len(documents) == 1 or d.get("kind") == KIND]
    if len(found) != 1:
        raise ManifestError(name, f"holds {len(found)} {KIND} objects", "Give a manifest with exactly one")
    return parse_manifest(found[0])


def parse_manifest(data: object) -> PipeDecDeployment:
    """Validates a manifest as loaded from YAML, or as the API server returns it. Raises `ManifestError`."""
    if not isinstance(data, Mapping):
        raise ManifestError("manifest", "is not a mapping", f"Begin with apiVersion: {API_VERSION} and kind: {KIND}")
    written = {key: value for key, value in data.items() if key != "status"}
    if isinstance(metadata := written.get("metadata"), Mapping):
        written["metadata"] = {key: value for key, value in metadata.items() if key not in _SERVER_METADATA}
    try:
        # Through JSON, because that is what a cluster sees of it: lists for tuples, and nothing else coerced.
        sent = json.dumps(written)
    except (TypeError, ValueError, RecursionError) as error:
        remedy = "Write plain mappings, lists, texts and numbers, without tags and without anchors that hold themselves"
        raise ManifestError("manifest", f"holds what cannot be sent to a cluster ({error})", remedy) from error
    try:
        return PipeDecDeployment.model_validate_json(sent)
    except ValidationError as error:
        raise InvalidManifest(_explain(error.errors(include_url=False))) from error


def _explain(details: Iterable[ErrorDetails]) -> list[ManifestError]:
    return [error for detail in details for error in _explain_one(detail)]


def _explain_one(detail: ErrorDetails) -> list[ManifestError]:
    kind, value, context, location = detail["type"], detail["input"], detail.get("ctx", {}), detail["loc"]
    field = _dotted(location)
    match kind:
        case "rules":
            return [ManifestError(_dotted((*location, *place)), *why) for place, why in context["broken"]]
        case "extra_forbidden":
            return [ManifestError(field, "is not a field of the manifest", _suggest_field(location))]
        case "missing":
            return [ManifestError(field, "is missing", f"Add it: {_description(location)}")]
        case "string_pattern_mismatch":
            remedy = PATTERN_REMEDIES.get(context["pattern"], f"It must match {context['pattern']}")
            return [ManifestError(field, f"{_shown(value)} is not valid", remedy)]
        case "literal_error":
            return [ManifestError(field, f"{_shown(value)} is not valid", f"Write {context['expected']}")]
        case _:
            return [ManifestError(field, f"{_shown(value)} {detail['msg'].removeprefix('Input ')}")]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else json.dumps(value, ensure_ascii=False)


def _suggest_field(location: tuple[str | int, ...]) -> str:
    model = _model_at(location[:-1])
    known = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}"


def _description(location: tuple[str | int, ...]) -> str:
    fields = _model_at(location[:-1]).model_fields
    return next(field.description or "" for field in fields.values() if field.alias == location[-1])


def _model_at(location: Iterable[str | int]) -> type[Strict]:
    """The model that describes the object at a location."""
    model: type[Strict] = PipeDecDeployment
    for part in location:
        if isinstance(part, str):
            field = next(field for field in model.model_fields.values() if field.alias == part)
            model = next(_models_in(field.annotation))
    return model


def _models_in(annotation: object) -> Iterator[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _dotted(location: Iterable[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


class _Loader(yaml.SafeLoader):
    """YAML as a cluster reads it, with dates as text; and a key that is written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is written twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
