"""Real processes with emulated devices: what is recorded comes out, and a held stage lets go of what is cancelled."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from benchmarks.comparison import Tuning
from benchmarks.measure import Device
from benchmarks.recording import Prompt, Recorder, Transcript, save
from benchmarks.replay import ReplayStage
from benchmarks.wallclock.pipeline import manifest, measure
from benchmarks.wallclock.scene import Scene, prompts_of_each_kind
from benchmarks.wallclock.stage import HeldStage
from draft_service.text import load_tokenizer
from pipedec.policy import PolicyName
from pipedec.wire.messages import Batch, Cancel, Row, Rows
from tests.tiny import tiny_model

PROMPTS = [Prompt("Tell me a story.", "story", "train"), Prompt("Count to ten.", "arithmetic", "train")]
LONG = 3600.0  # seconds: a stage that is not let go keeps the test until it is killed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), layers=3)


@pytest.fixture(scope="module")
def scene(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    tokenizer = load_tokenizer(model)
    prompts = [(p, tuple(tokenizer.encode_chat([{"role": "user", "content": p.prompt}], {}))) for p in PROMPTS]
    save(file := tmp_path_factory.mktemp("record") / "record.npz", Recorder(model).record(prompts, 16), {})
    device = Device(((64, 2.0),), draft_ms=0.5, link_ms=0.1)
    return Scene(file, (0, 1), 320, 12, noise=0.5, children=4, device=device, compute=False)


def test_a_scene_is_read_as_it_was_written(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.write(tmp_path / "scene.json")
    monkeypatch.setenv("PIPEDEC_BENCHMARK_SCENE", str(tmp_path / "scene.json"))
    assert Scene.from_environment() == scene
    assert [len(transcript.answer) for transcript in scene.transcripts()] == [12, 12]


def test_prompts_are_taken_of_each_kind_in_turn() -> None:
    assert prompts_of_each_kind(["code", "code", "story", "code", "story"], 3) == (0, 1, 2)
    assert prompts_of_each_kind(["code", "code", "code", "story"], 2) == (0, 3)


@pytest.mark.parametrize(("policy", "stages"), [("none", 1), ("adaptive", 2)])
def test_real_processes_answer_what_is_recorded(model: Path, scene: Scene, policy: PolicyName, stages: int) -> None:
    told: list[None] = []
    resource = manifest(f"file://{quote(str(model))}", stages, policy, Tuning(children=4))
    timed = measure(resource, scene, PROMPTS, lambda: told.append(None))
    assert (timed.tokens, len(told)) == (2 * 11, 2)


def test_a_held_stage_lets_go_of_what_is_cancelled(scene: Scene) -> None:
    transcript: Transcript = scene.transcripts()[0]
    stage = HeldStage(ReplayStage([transcript], 320, is_last=False), lambda rows: LONG)
    stage.reset(1, 64)
    batch = Batch(1, 0, (), Rows.of([Row(0, 3, 2, 7, 5, 5, ())]))
    heard: list[float] = []

    def listen(done: float) -> None:
        heard.append(done)
        stage.cancel(Cancel(1, 0, ((0, 3),)))

    result = stage.step(batch, None, listen)
    assert result.rows == 0
    assert result.activation is not None
    assert np.array_equal(result.activation.alive, np.zeros(0, np.int32))
    assert len(heard) == 1
