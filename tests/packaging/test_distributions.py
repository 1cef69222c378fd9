"""What is published holds all that a user needs, on either way: a wheel from the repository, or by way of the sdist."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


def wheel_of(source: Path, folder: Path) -> Path:
    (built,) = WheelBuilder(str(source)).build(directory=str(folder), versions=["standard"])
    return Path(built)


def wheel_by_way_of_the_sdist(source: Path, folder: Path) -> Path:
    (sdist,) = SdistBuilder(str(source)).build(directory=str(folder))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return wheel_of(unpacked, folder)


@pytest.mark.parametrize("build", [wheel_of, wheel_by_way_of_the_sdist])
def test_the_wheel_is_whole(
    build: Callable[[Path, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressor = zlib.compressobj
    monkeypatch.setattr(zlib, "compressobj", lambda level, *others: compressor(0, *others))  # weights take seconds
    with zipfile.ZipFile(build(ROOT, tmp_path)) as wheel:
        sizes = {each.filename: each.file_size for each in wheel.infolist()}
    for name in ("model.safetensors", "config.json"):
        assert (
            sizes[f"pipedec/data/smollm2-draft/{name}"] == (ROOT / "pipedec/data/smollm2-draft" / name).stat().st_size
        )
    packages = {"pipedec", "stage_service", "draft_service", "pipedec_operator"}
    assert {name.partition("/")[0] for name in sizes if ".dist-info/" not in name} == packages
    assert {
        "pipedec/data/speedup.json",
        "draft_service/draft/drafter.py",
        "draft_service/live/static/index.html",
        "pipedec/cli/__main__.py",
    } <= sizes.keys()
    assert not [name for name in sizes if name.endswith("Dockerfile")]
