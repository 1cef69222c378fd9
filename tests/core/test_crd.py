"""The generated CRD: what is committed, what Kubernetes accepts, and that it means what the models mean."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipedec.spec import DeploymentSpec, Draft, EnvVar, ModelCache, Pipeline, Speculation
from pipedec.spec.base import Strict
from pipedec.spec.crd import crd, render, structural_schema
from pipedec.spec.deployment import Serving

Schema = dict[str, Any]

SCHEMA: Schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
STRUCTURAL = {
    "description", "type", "format", "enum", "default", "required", "properties", "items", "additionalProperties",
    "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key, sign in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from nodes(schema[key], path + sign)


def test_the_committed_file_is_what_is_generated() -> None:
    committed = Path("crds/pipedec.dev_pipedecdeployments.yaml").read_text()
    assert committed == render(), "run `python -m pipedec.spec.crd > crds/pipedec.dev_pipedecdeployments.yaml`"


def test_the_schema_is_structural() -> None:
    for path, schema in nodes(SCHEMA):
        assert schema.keys() <= STRUCTURAL, path
        assert ("type" in schema) != schema.get("x-kubernetes-int-or-string", False), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        assert (schema.get("type") == "array") == ("items" in schema), path
        assert set(schema.get("required", ())) <= set(schema.get("properties", ())), path
        assert schema.get("default", ...) is not None, path


def test_every_field_is_explained() -> None:
    for path, schema in nodes(SCHEMA):
        for name, inner in schema.get("properties", {}).items():
            assert name == "metadata" or inner.get("description"), f"{path}.{name}"


def test_columns_and_subresources_point_at_fields() -> None:
    version = crd()["spec"]["versions"][0]
    scale = version["subresources"]["scale"].values()
    paths = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    known = {path for path, _ in nodes(SCHEMA)} | {".metadata.creationTimestamp", ".status.conditions"}
    assert all(path.split("[")[0] in known for path in [*paths, *scale])


# CEL and the models' own checks judge the same objects alike.


def defaulted(schema: Schema, value: Any) -> Any:
    """What the API server makes of a value before the rules see it."""
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        value = {name: inner["default"] for name, inner in fields.items() if "default" in inner} | value
        return {name: defaulted(fields.get(name, {}), inner) for name, inner in value.items()}
    return [defaulted(schema["items"], inner) for inner in value] if isinstance(value, list) else value


def cel_messages(schema: Schema, value: Any) -> list[str]:
    """Messages of the rules that the API server would refuse a value by."""
    context = cel.Context(variables={"self": value})
    context.add_function("isSorted", lambda items: sorted(items) == list(items))
    context.add_function("split", lambda text, separator: text.split(separator))
    return [rule["message"] for rule in schema["x-kubernetes-validations"] if not cel.evaluate(rule["rule"], context)]


def model_accepts(model: type[Strict], value: Any) -> bool:
    try:
        model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        if any(detail["type"] != "rules" for detail in error.errors()):
            raise  # the strategies make well-formed objects
        return False
    return True


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def layer_ranges(draw: st.DrawFn) -> list[str]:
    """Nearly contiguous ranges: a division of some layers, in which a few numbers may be moved."""
    ends = sorted(draw(st.sets(st.integers(0, 12), min_size=1, max_size=5)))
    pairs = [[start, end] for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]
    for _ in range(draw(st.integers(0, 2))):
        draw(st.sampled_from(pairs))[draw(st.integers(0, 1))] = draw(st.integers(0, 12))
    if draw(st.booleans()):
        pairs = draw(st.permutations(pairs))
    return [f"{start}-{end}" for start, end in pairs]


SMALL: dict[str, Any] = {"model": {"uri": "hf://org/name"}, "pipeline": {"stages": 2}}
uri = st.just("hf://org/name")
overrides = st.lists(st.fixed_dictionaries({"stage": st.integers(0, 6)}), max_size=3)
policies = st.sampled_from(["none", "static-tree", "pipedec", "adaptive"])
CASES: dict[type[Strict], st.SearchStrategy[dict[str, Any]]] = {
    EnvVar: st.fixed_dictionaries(
        {"name": st.sampled_from(["A", "PIPEDEC_A", "XPIPEDEC_"])},
        optional={"value": st.just("v"), "valueFrom": st.just({"fieldRef": {}})},
    ),
    Draft: some(uri=uri, targetLayers=st.integers(1, 4)),
    Pipeline: some(stages=st.integers(1, 6), overrides=overrides)
    | some(layers=layer_ranges(), overrides=overrides)
    | some(stages=st.integers(1, 6), layers=layer_ranges()),
    Speculation: some(policy=policies, depth=st.integers(1, 4)),
    Serving: some(port=st.integers(6999, 7004)),
    ModelCache: some(size=st.just("1Gi"), claimName=st.just("c")),
    DeploymentSpec: st.fixed_dictionaries(
        {"model": st.just({"uri": "hf://org/name"}), "pipeline": st.just({"stages": 2})},
        optional={
            "draft": st.just({"targetLayers": 1}),
            "speculation": some(policy=policies, maxRows=st.integers(1, 20)),
            "serving": some(maxSequences=st.integers(1, 20)),
        },
    ),
}


def with_rules(model: type[Strict]) -> Iterator[type[Strict]]:
    for child in model.__subclasses__():
        if child.rules:
            yield child
        yield from with_rules(child)


def test_every_model_with_rules_is_compared() -> None:
    assert set(CASES) == set(with_rules(Strict))


@pytest.mark.parametrize("model", CASES, ids=lambda model: model.__name__)
def test_cel_and_models_agree(model: type[Strict]) -> None:
    schema, verdicts = structural_schema(model), set()

    @settings(deadline=None)
    @given(CASES[model])
    def agree(value: dict[str, Any]) -> None:
        verdict = model_accepts(model, value)
        verdicts.add(verdict)
        assert (not cel_messages(schema, defaulted(schema, value))) == verdict

    agree()
    assert verdicts == {True, False}


# What a newer API server asks of rules beside their verdict.

BROKEN: dict[type[Strict], list[tuple[dict[str, Any], str]]] = {
    EnvVar: [
        ({"name": "PIPEDEC_A", "value": "v"}, "name: names beginning with PIPEDEC_"),
        ({"name": "A"}, "value: value and valueFrom exclude each other"),
    ],
    Draft: [({}, "uri: uri and targetLayers exclude each other")],
    Pipeline: [
        ({}, "stages: stages and layers exclude each other"),
        ({"layers": ["1-5"]}, "layers: the first range must begin with layer 0"),
        ({"layers": ["0-5", "6-5"]}, "layers: a range must not end before it begins"),
        ({"layers": ["0-5", "7-11"]}, "layers: must begin right after the range before it"),
        ({"stages": 2, "overrides": [{"stage": 2}]}, "overrides: names a stage that does not exist"),
        ({"stages": 2, "overrides": [{"stage": 1}, {"stage": 1}]}, "overrides: the stage has an override already"),
    ],
    Speculation: [({"policy": "pipedec", "depth": 3}, "depth: only policy static-tree has a fixed depth")],
    Serving: [({"port": 7001}, "port: the draft pod has ports 7001 and 7002")],
    ModelCache: [({"size": "1Gi", "claimName": "c"}, "size: the size of an existing claim cannot be chosen here")],
    DeploymentSpec: [
        (
            {**SMALL, "speculation": {"policy": "pipedec"}},
            "speculation.policy: policies static-tree and pipedec need a draft",
        ),
        (
            {**SMALL, "speculation": {"maxRows": 1}, "serving": {"maxSequences": 2}},
            "speculation.maxRows: must be at least serving.maxSequences",
        ),
    ],
}


@pytest.mark.parametrize("model", BROKEN, ids=lambda model: model.__name__)
def test_every_rule_refuses_with_its_own_message(model: type[Strict]) -> None:
    schema = structural_schema(model)
    stated = [rule["message"] for rule in schema["x-kubernetes-validations"]]
    told = [cel_messages(schema, defaulted(schema, value)) for value, _ in BROKEN[model]]
    assert all(len(messages) == 1 for messages in told), "a sample breaks one rule alone"
    assert all(message.startswith(words) for (message,), (_, words) in zip(told, BROKEN[model], strict=True))
    assert [message for (message,) in told] == stated


def test_what_rules_read_is_bounded() -> None:
    """Else an API server cannot say beforehand what a rule costs at most, and refuses the whole CRD."""
    for path, schema in nodes(SCHEMA["properties"]["spec"]):
        for rule in schema.get("x-kubernetes-validations", ()):
            assert len(rule["message"]) <= 2048
            for field in re.findall(r"self\.(\w+)", rule["rule"]):
                assert bounded(schema["properties"].get(field, {})), f"{path}.{field}"
        if schema.get("type") == "array":
            assert "maxItems" in schema, path


def bounded(schema: Schema) -> bool:
    match schema.get("type"):
        case "array":
            return "maxItems" in schema and bounded(schema["items"])
        case "string":
            return "maxLength" in schema or "enum" in schema
        case _:
            return True
