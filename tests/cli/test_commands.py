"""The commands that run no pipeline."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pipedec
from pipedec.cli import app
from tests.core.test_partition import SMOLLM2

MANIFEST = """
apiVersion: pipedec.dev/v1alpha1
kind: PipeDecDeployment
metadata: {name: small}
spec:
  model: {uri: "file://FOLDER", dtype: bfloat16}
  draft: {targetLayers: 2}
  pipeline: {PIPELINE}
"""


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "160", "TERM": "dumb"}).invoke(app, arguments, prog_name="pipedec")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    file = tmp_path / "manifest.yaml"
    file.write_text(MANIFEST.replace("FOLDER", str(tmp_path)).replace("PIPELINE", "stages: 2"))
    return file


def test_a_valid_manifest_is_said_to_be_valid(file: Path) -> None:
    code, out, _ = run("validate", "-f", str(file))
    assert code == 0
    assert out.startswith("small is valid: file:///")
    assert "in 2 stages, draft: its first 2 layers, policy adaptive, 16 requests at a time" in out


def test_an_invalid_one_is_explained_without_a_trace(file: Path) -> None:
    file.write_text(file.read_text().replace("stages", "stagse").replace("bfloat16", "int8"))
    code, out, err = run("validate", "-f", str(file))
    assert (code, out) == (1, "")
    assert err.startswith("error: 2 problems in the manifest:\n")
    assert "spec.pipeline.stagse: is not a field of the manifest. Did you mean stages?" in err
    assert "Traceback" not in err


def test_the_split_is_shown(file: Path) -> None:
    code, out, _ = run("split", "-f", str(file))
    rows = [[cell.strip() for cell in line.strip("│ \n").split("│")] for line in out.splitlines() if line[:1] == "│"]
    assert code == 0
    assert rows == [
        ["0", "0-18", "embedding", "0.19 GB", "0.13 GB", "100%"],
        ["1", "19-29", "norm and LM head", "0.13 GB", "0.13 GB", "100%"],
    ]


def test_a_split_that_does_not_fit_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace("stages: 2", "stages: 31"))
    code, _, err = run("split", "-f", str(file))
    assert code == 1
    assert "spec.pipeline.stages: is 31, but the model has 30 layers" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.json"),
        ("{", "config.json"),
        ("[]", "a JSON object is expected"),
        ('{"text_config": []}', "`text_config` is not a JSON object"),
        (json.dumps(SMOLLM2 | {"intermediate_size": [1536, 768]}), "`intermediate_size` is not a number"),
    ],
)
@pytest.mark.parametrize(
    "command", ["up -f FILE", "generate hello -f FILE", "split -f FILE", "plan --gpu L4 --model FOLDER"]
)
def test_a_folder_that_is_no_model_is_explained(file: Path, command: str, content: str | None, words: str) -> None:
    (file.parent / "config.json").unlink()
    if content is not None:
        (file.parent / "config.json").write_text(content)
    code, out, err = run(*command.replace("FILE", str(file)).replace("FOLDER", str(file.parent)).split())
    assert (code, out) == (1, "")
    assert words in err


def test_what_no_process_could_load_is_not_called_prepared(file: Path) -> None:
    for words in ("neither model.safetensors nor", "config.json: cannot be read (No such file or directory)"):
        code, out, err = run("models", "prepare", f"file://{file.parent}")
        assert (code, out) == (1, "")
        assert words in err
        (file.parent / "config.json").unlink(missing_ok=True)


def test_models_are_prepared_and_listed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEDEC_MODEL_CACHE", str(tmp_path / "cache"))
    assert run("models", "prepare", f"file://{model}")[:2] == (0, f"{model}\n")
    assert "holds no models; `pipedec models prepare" in run("models", "list")[2]
    prepared = tmp_path / "cache" / "pypi" / "some-model"
    prepared.mkdir(parents=True)
    (prepared / "weights").write_bytes(bytes(3_000_000))
    (prepared / ".complete.json").write_text('{"weights": 3000000}')
    code, out, _ = run("models", "list")
    assert code == 0
    assert "pypi://some-model" in out
    assert "3 MB" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--file", "m.yaml", "--url", "http://x"), "--file and --url exclude each other"),
        (("--policy", "none"), "--policy needs --file"),
        (("--file", "m.yaml"), "m.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_contradictions_are_refused(arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run("generate", "hello", *arguments)
    assert code == 1
    assert words in err


@pytest.mark.parametrize(
    "command",
    ["up -f FILE", "generate hello -f FILE", "generate hello", "top --once", "doctor --url http://127.0.0.1:1"],
)
def test_a_key_that_cannot_be_sent_is_refused_at_once(file: Path, command: str) -> None:
    key = file.with_name("key")
    key.write_bytes(b"\xff\n")
    code, out, err = run(*command.replace("FILE", str(file)).split(), "--api-key-file", str(key))
    assert (code, out) == (1, "")
    assert f"error: {key}: holds a key that no client can send" in err


@pytest.mark.parametrize(("port", "words"), [("99999", "equal to 65535"), ("-1", "equal to 0")])
def test_a_port_that_cannot_be_is_refused(file: Path, port: str, words: str) -> None:
    code, _, err = run("up", "-f", str(file), "--port", port)
    assert code == 2
    assert re.search(rf"Invalid value for '--port': .* {words}", err)


def test_the_version_is_told() -> None:
    assert run("--version")[:2] == (0, f"{pipedec.__version__}\n")


def test_every_command_explains_itself() -> None:
    for command in ("up", "generate", "validate", "split", "plan", "doctor", "models"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"Usage: pipedec {command}" in out
