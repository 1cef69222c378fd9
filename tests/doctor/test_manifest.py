"""What the doctor makes of a manifest and the models it names, from their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipedec.doctor import Finding, judge_manifest
from pipedec.doctor.gather.models import gather_manifest
from pipedec.model.shape import INDEX_FILE
from pipedec.sizing import Gpu, find_gpu
from tests.quantised import quantised
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("target"), shard_size="20KB")


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("draft"), layers=1)


class Case:
    """A manifest in a folder of its own, and what is found about it."""

    def __init__(self, folder: Path, target: Path, draft: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = {
            "apiVersion": "pipedec.dev/v1alpha1",
            "kind": "PipeDecDeployment",
            "metadata": {"name": "lion"},
            "spec": {
                "model": {"uri": f"file://{target}", "dtype": "float32"},
                "draft": {"uri": f"file://{draft}"},
                "pipeline": {"stages": 2},
                "serving": {"maxContext": 128, "maxSequences": 2},
            },
        }

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.manifest["spec"]
        return spec

    def findings(self, gpu: Gpu | None = None) -> list[Finding]:
        file = self.folder / "lion.yaml"
        file.write_text(json.dumps(self.manifest))  # JSON is YAML
        return judge_manifest(gather_manifest(file, self.folder, gpu))

    def failures(self, gpu: Gpu | None = None) -> list[tuple[str, str]]:
        return [(each.check, each.message) for each in self.findings(gpu) if each.level == "fail"]


@pytest.fixture
def case(tmp_path: Path, target: Path, draft: Path) -> Case:
    return Case(tmp_path, target, draft)


def test_a_good_manifest_needs_nothing(case: Case) -> None:
    levels = {each.check: each.level for each in case.findings(find_gpu("T4"))}
    assert levels == {"manifest": "ok", "target": "ok", "draft": "ok", "split": "ok", "memory": "ok"}
    assert {each.check for each in case.findings() if each.level == "skip"} == {"memory"}


def test_every_mistake_is_told_at_once_with_its_remedy(case: Case) -> None:
    case.spec["pipeline"] = {"stagse": 2}
    case.spec["model"]["dtype"] = "int8"
    findings = case.findings()
    assert {each.check for each in findings} == {"manifest"}
    assert [each.message.split()[0] for each in findings] == ["spec.model.dtype", "spec.pipeline.stagse"]
    assert all(each.remedy for each in findings)


def test_a_model_that_is_nowhere_is_said(case: Case) -> None:
    case.spec["model"]["uri"] = "file:///nowhere"
    ((check, message),) = case.failures()
    assert (check, message) == ("target", "file:///nowhere: /nowhere is not a folder; it must be what transformers'"
                                " save_pretrained writes")  # fmt: skip


def test_files_that_are_missing_are_named(case: Case, tmp_path: Path, target: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    files = sorted(target.iterdir())
    shard = next(file for file in files if file.name.endswith(".safetensors"))
    for file in files:
        if file not in (shard, target / "tokenizer.json"):
            (part / file.name).write_bytes(file.read_bytes())
    case.spec["model"]["uri"] = f"file://{part}"
    assert ("target", f"file://{part} lacks tokenizer.json, {shard.name}") in case.failures()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_cannot_be_read_is_said(case: Case, tmp_path: Path, target: Path, content: str) -> None:
    broken = Path(shutil.copytree(target, tmp_path / "broken"))
    (broken / INDEX_FILE).write_text(content)
    case.spec["model"]["uri"] = f"file://{broken}"
    assert case.failures() == [("target", f"{broken / INDEX_FILE}: `weight_map` cannot be read; download it again")]


def test_an_architecture_that_cannot_be_split_is_refused(case: Case, tmp_path: Path) -> None:
    mamba = tmp_path / "mamba"
    mamba.mkdir()
    config = {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2}
    (mamba / "config.json").write_text(json.dumps(config | {"vocab_size": 320, "state_size": 4}))
    case.spec["model"]["uri"] = f"file://{mamba}"
    ((check, _),) = case.failures()
    assert check == "target"


def test_a_draft_of_another_vocabulary_is_refused(case: Case, tmp_path: Path) -> None:
    case.spec["draft"]["uri"] = f"file://{tiny_model(tmp_path / 'other', vocab=400, layers=1)}"
    assert case.failures() == [("draft", "its vocabulary has 400 tokens, the target's 320")]


def test_a_draft_as_large_as_the_target_is_warned_of(case: Case, target: Path) -> None:
    case.spec["draft"]["uri"] = f"file://{target}"
    case.spec["pipeline"]["stages"] = 4
    assert ("warn", "draft") in [(each.level, each.check) for each in case.findings()]


@pytest.mark.parametrize(
    ("field", "value", "check", "words"),
    [
        ("pipeline", {"stages": 9}, "split", "spec.pipeline.stages is 9, but the model has 4 layers"),
        ("draft", {"targetLayers": 5}, "draft", "spec.draft.targetLayers is 5, but the model has 4"),
        ("serving", {"maxContext": 4096}, "split", "spec.serving.maxContext is 4096, but the model's own limit"),
        ("serving", {"kvSlots": 100}, "KV slots", "cannot hold one request of 512 tokens"),
    ],
)
def test_what_does_not_fit_is_named(case: Case, field: str, value: Any, check: str, words: str) -> None:
    case.spec[field] = value
    ((found, message),) = case.failures()
    assert found == check
    assert words in message


def test_memory_is_compared_with_the_gpu(case: Case) -> None:
    tiny = Gpu("toy", 0.5, 1, 1, "the test")
    assert {check for check, _ in case.failures(tiny)} == {"memory"}


def test_8_bit_weights_are_counted_as_a_gpu_and_a_cpu_hold_them(case: Case, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", hidden=512, layers=2, vocab=320, intermediate_size=40_000)
    case.spec["model"]["uri"] = f"file://{quantised(model, tmp_path / 'quantised', 'fp8-block')}"
    messages = [each.message for each in case.findings() if each.check == "memory"]
    assert "needs 0.1 GiB of weights (8 bits, on a GPU; on a CPU 0.2)" in messages[0]
    assert "8 bits" not in messages[1]
    case.spec["model"]["uri"] = f"file://{quantised(model, tmp_path / 'other', 'fp8-block', quant_method='hqq')}"
    assert ["quant_method` is 'hqq'" in message for check, message in case.failures() if check == "target"] == [True]


def test_a_volume_of_the_cluster_is_not_judged_from_here(case: Case) -> None:
    case.spec["model"]["uri"] = "pvc://models/lion"
    assert ("skip", "target") in [(each.level, each.check) for each in case.findings()]
    assert case.failures() == []
