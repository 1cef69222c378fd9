"""`pipedec plan`: Llama 3.1 70B on small GPUs, and a manifest that everything else accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipedec.sizing.reference import LLAMA_1B, LLAMA_70B
from pipedec.spec import load_manifest
from tests.cli.test_commands import run
from tests.tiny import tiny_model


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    """config.json of a target and a draft."""
    files = []
    for name, config in (("Llama-3.1-70B", LLAMA_70B), ("Llama-3.2-1B", LLAMA_1B)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        files.append(str(folder / "config.json"))
    return files[0], files[1]


def plan(*arguments: str) -> tuple[str, str]:
    code, out, err = run("plan", *arguments)
    assert code == 0, err
    return out, err


def estimates(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan(*arguments, "--json")[0])
    return found


@pytest.mark.parametrize(
    ("gpu", "dtype"), [("L4", "bfloat16"), ("T4", "float16"), ("A10", "bfloat16"), ("4090", "bfloat16")]
)
def test_seventy_billion_parameters_on_small_gpus(models: tuple[str, str], gpu: str, dtype: str) -> None:
    target, draft = models
    found = estimates("--model", target, "--draft", draft, "--gpu", gpu)
    assert found["estimate"]
    assert found["dtype"] == dtype
    assert found["least_stages"] <= found["recommended_stages"]
    by_stages = {each["stages"]: each for each in found["options"]}
    best = by_stages[found["recommended_stages"]]
    rates = best["tokens_per_second"]
    assert rates["none"] < rates["pipedec"] < rates["adaptive"]
    assert sum(best["stage_bytes"]) > 141e9
    out, err = plan("--model", target, "--draft", draft, "--gpu", gpu)
    assert err.startswith("ESTIMATES for LlamaForCausalLM, 70.6B parameters in 80 layers")
    manifest = load_manifest(out)
    assert manifest.metadata.name == "llama-3-1-70b"
    assert manifest.spec.pipeline.num_stages == found["recommended_stages"]
    assert manifest.spec.model.dtype == dtype
    assert manifest.spec.serving.max_context == 8192


def test_a_faster_gpu_decodes_faster(models: tuple[str, str]) -> None:
    target, draft = models
    arguments = ("--model", target, "--draft", draft, "--stages", "8")
    rates = [
        {each["stages"]: each for each in estimates(*arguments, "--gpu", gpu)["options"]}[8]["tokens_per_second"]
        for gpu in ("L4", "A10", "4090")
    ]
    for policy in ("none", "adaptive"):
        assert [rate[policy] for rate in rates] == sorted(rate[policy] for rate in rates)


def test_a_gpu_of_ones_own_is_described(models: tuple[str, str]) -> None:
    numbers = ("--gpu-memory", "24", "--gpu-bandwidth", "300", "--gpu-tflops", "121")
    own, known = estimates("--model", models[0], *numbers), estimates("--model", models[0], "--gpu", "L4")
    assert own["options"] == known["options"]


def test_without_a_draft_nothing_is_promised(models: tuple[str, str]) -> None:
    out, err = plan("--model", models[0], "--gpu", "L4")
    assert load_manifest(out).spec.policy == "adaptive"  # the default, which predicts what a text repeats
    assert "Without --draft only what a text repeats is predicted" in err
    assert estimates("--model", models[0], "--gpu", "L4")["options"][0]["tokens_per_second"]["adaptive"] is None


def test_the_doctor_accepts_what_is_suggested(tmp_path: Path) -> None:
    target, draft = tiny_model(tmp_path / "target"), tiny_model(tmp_path / "draft", layers=1)
    out, _ = plan("--model", str(target), "--draft", str(draft), "--gpu", "T4", "--stages", "2")
    file = tmp_path / "tiny.yaml"
    file.write_text(out)
    code, said, _ = run("doctor", "-f", str(file), "--gpu", "T4")
    assert code == 0, said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpu", "L5"), "RTX5090. For another give --gpu-memory, --gpu-bandwidth and --gpu-tflops"),
        ((), "--gpu is missing"),
        (("--gpu-memory", "24"), "are needed together"),
        (("--gpu", "T4", "--dtype", "bfloat16"), "--dtype bfloat16: T4 has none; write float16"),
        (("--gpu", "L4", "--dtype", "int4"), "--dtype int4: write one of float32, bfloat16, float16"),
        (("--gpu", "L4", "--stages", "3"), "--stages 3: does not fit; 8 is the least"),
        (("--gpu", "L4", "--stages", "81"), "--stages 81: write 1 to 64"),
        (("--gpu", "L4", "--context", "1000000"), "--context 1000000: write 16 to 131072"),
        (("--gpu", "L4", "--agreement", "0.99"), "--agreement 0.99: was measured from 0.4 to 0.95"),
        (("--gpu", "L4", "--context", "131072", "--sequences", "200"), "lower --context or --sequences"),
    ],
)
def test_what_cannot_be_is_refused(models: tuple[str, str], arguments: tuple[str, ...], words: str) -> None:
    code, out, err = run("plan", "--model", models[0], "--draft", models[1], *arguments)
    assert (code, out) == (1, "")
    assert words in err


@pytest.mark.parametrize("agreement", ["2", "nan"])
def test_an_agreement_that_cannot_be_is_refused_without_a_draft_too(models: tuple[str, str], agreement: str) -> None:
    code, out, err = run("plan", "--model", models[0], "--gpu", "L4", "--agreement", agreement)
    assert (code, out) == (1, "")
    assert "was measured from 0.4 to 0.95" in err


@pytest.mark.parametrize("option", ["--link-ms", "--gpu-memory", "--gpu-bandwidth", "--gpu-tflops"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_is_refused(models: tuple[str, str], option: str, value: str) -> None:
    code, out, err = run("plan", "--model", models[0], "--gpu", "L4", option, value)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{option}'" in err


def test_a_draft_of_another_family_is_refused(models: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B | {"vocab_size": 32000}))
    code, _, err = run("plan", "--model", models[0], "--draft", str(tmp_path), "--gpu", "L4")
    assert code == 1
    assert "--draft: has a vocabulary of 32000 tokens, the target has 128256" in err
