"""Models that are folders already, and what tells one from another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipedec.errors import ModelError
from pipedec.models import identity, resolve, resolve_config


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


@pytest.mark.parametrize("uri", ["file:///nowhere/model", "pvc://claim/model", "ftp://host/model"])
def test_what_is_not_there_is_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^{uri}: "):
        resolve(uri, tmp_path, claims=tmp_path)


def test_identity_tells_models_apart(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    assert identity(copy) == identity(tiny)
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("silu", "gelu"))
    assert identity(copy) != identity(tiny)
