"""A manifest of two stages of a tiny model, for commands that are given one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny_model

MANIFEST = """
apiVersion: pipedec.dev/v1alpha1
kind: PipeDecDeployment
metadata: {name: tiny}
spec:
  model: {uri: "file://MODEL", dtype: float32}
  draft: {targetLayers: 2}
  pipeline: {stages: 2}
  serving: {maxSequences: 2, maxContext: 128, threads: 1, drainSeconds: 5}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def manifest(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("manifest") / "tiny.yaml"
    file.write_text(MANIFEST.replace("MODEL", str(model)))
    return file
