"""A manifest as processes: their settings, and what outside a cluster is refused."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from pipedec.cli.local import Local, check_local, plan_processes, with_folders, with_policy
from pipedec.config import DraftConfig, StageConfig
from pipedec.errors import ManifestError
from pipedec.spec import PipeDecDeployment, load_manifest, parse_manifest
from pipedec.wire.keys import load_keys


def manifest(**spec: Any) -> PipeDecDeployment:
    whole = {"model": {"uri": "hf://a/b"}, "draft": {"uri": "hf://a/c"}, "pipeline": {"stages": 2}} | spec
    resource = {"apiVersion": "pipedec.dev/v1alpha1", "kind": "PipeDecDeployment", "metadata": {"name": "m"}}
    return parse_manifest(resource | {"spec": whole})


def test_every_process_gets_its_settings(tmp_path: Path) -> None:
    wanted = manifest(serving={"threads": 3, "drainSeconds": 7}, model={"uri": "hf://a/b", "servedName": "large"})
    local = Local(port=0, devices=("cuda:0", "cuda:1"), log_level="WARNING")
    pipeline = plan_processes(wanted, tmp_path, Path("/cache"), local)

    draft, *stages = pipeline.programs
    head = DraftConfig.from_env(draft.environment)
    settings = [StageConfig.from_env(stage.environment) for stage in stages]
    assert [program.name for program in pipeline.programs] == ["draft", "stage 0", "stage 1"]
    assert [config.stage for config in settings] == [0, 1]
    assert {config.head_address for config in settings} == {f"tcp://127.0.0.1:{head.control_port}"}
    assert [config.device for config in (head, *settings)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert {config.threads for config in (head, *settings)} == {3}
    assert {config.model_cache for config in (head, *settings)} == {Path("/cache")}
    assert load_manifest(head.manifest) == wanted
    assert pipeline.url == f"http://127.0.0.1:{head.http_port}"
    assert pipeline.probes["draft"] == f"{pipeline.url}/ready"
    assert pipeline.probes["stage 1"] == f"http://127.0.0.1:{settings[1].metrics_port}/readyz"
    assert (pipeline.served_name, pipeline.drain_seconds) == ("large", 7)


def test_keys_are_fresh_and_private(tmp_path: Path) -> None:
    def keys(folder: Path) -> object:
        folder.mkdir()
        pipeline = plan_processes(manifest(), folder, folder, Local(port=0))
        directory = DraftConfig.from_env(pipeline.programs[0].environment).keys_dir
        assert directory is not None
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in directory.iterdir())
        return load_keys(directory)

    assert keys(tmp_path / "one") != keys(tmp_path / "two")


def test_the_manifests_environment_reaches_the_processes(tmp_path: Path) -> None:
    pipeline = {
        "stages": 2,
        "env": [{"name": "COLOUR", "value": "red"}],
        "overrides": [{"stage": 1, "env": [{"name": "COLOUR", "value": "blue"}]}],
    }
    draft, one, two = plan_processes(manifest(pipeline=pipeline), tmp_path, tmp_path, Local(port=0)).programs
    assert (one.environment["COLOUR"], two.environment["COLOUR"]) == ("red", "blue")
    assert "COLOUR" not in draft.environment


def test_a_wildcard_address_is_asked_through_the_loopback(tmp_path: Path) -> None:
    assert plan_processes(manifest(), tmp_path, tmp_path, Local("0.0.0.0", 0)).url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"suspend": True}, "spec.suspend", "Set it to false"),
        (
            {"serving": {"apiKeySecretRef": {"name": "a", "key": "b"}}},
            "spec.serving.apiKeySecretRef",
            "there are no Secrets outside a cluster. Give --api-key-file",
        ),
        (
            {"pipeline": {"stages": 1, "env": [{"name": "X", "valueFrom": {"fieldRef": {}}}]}},
            "spec.pipeline.env",
            "X has a valueFrom, which only a cluster has",
        ),
    ],
)
def test_what_only_a_cluster_can_honour_is_refused(spec: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check_local(manifest(**spec), Local())
    assert caught.value.field == field
    assert words in str(caught.value)


def test_a_key_file_stands_for_the_secret(tmp_path: Path) -> None:
    check_local(manifest(serving={"apiKeySecretRef": {"name": "a", "key": "b"}}), Local(api_key_file=tmp_path))


def test_models_become_folders_for_all_processes_alike(tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    changed = with_folders(manifest(), folder, tmp_path)
    assert changed.spec.model.uri == f"file://{tmp_path}/a%20model"
    assert changed.spec.draft is not None
    assert changed.spec.draft.uri == f"file://{tmp_path}"
    assert with_folders(manifest(draft={"targetLayers": 2}), folder, None).spec.draft == parse_draft(2)


def parse_draft(layers: int) -> object:
    return manifest(draft={"targetLayers": layers}).spec.draft


def test_the_policy_can_be_changed_within_the_rules() -> None:
    assert with_policy(manifest(), None) == manifest()
    assert with_policy(manifest(), "none").spec.policy == "none"
    with pytest.raises(ManifestError, match=r"spec\.speculation\.policy: \"magic\" is not valid"):
        with_policy(manifest(), "magic")


@pytest.mark.parametrize(
    ("page", "local", "shown"),
    [
        ({}, Local(port=0), True),
        ({}, Local("0.0.0.0", 0), None),
        ({"showText": False}, Local(port=0), None),
        ({"showText": False}, Local(port=0, show_text=True), True),
        ({"showText": True}, Local(port=0, show_text=False), False),
    ],
)
def test_texts_are_shown_where_only_this_machine_sees_them(
    page: dict[str, Any], local: Local, shown: bool | None, tmp_path: Path
) -> None:
    """None: as the manifest says, which is not to unless it says so."""
    pipeline = plan_processes(manifest(serving={"livePage": page}), tmp_path, tmp_path, local)
    assert DraftConfig.from_env(pipeline.programs[0].environment).live_text is shown
