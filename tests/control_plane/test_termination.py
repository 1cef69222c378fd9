"""Pods end when they are told to, though they have not finished loading: as process 1 they have no default for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.control_plane.samples import children
from tests.control_plane.test_manifests import env_of

WHILE_LOADING = """
import runpy, signal, time
from draft_service import assembly

def load_models(config):
    signal.raise_signal(signal.SIGTERM)
    time.sleep(60)

assembly.load_models = load_models
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as the kernel does for process 1
runpy.run_module("draft_service", run_name="__main__", alter_sys=True)
"""


def test_a_draft_pod_ends_while_it_loads(tmp_path: Path) -> None:
    found = children()
    (config,) = (child for name, child in found.items() if name.startswith("ConfigMap/lion-draft-"))
    (tmp_path / "manifest.yaml").write_text(config["data"]["manifest.yaml"])
    told = env_of(found["Deployment/lion-0-draft"]) | {"PIPEDEC_MANIFEST": str(tmp_path / "manifest.yaml")}
    result = subprocess.run(
        [sys.executable, "-c", WHILE_LOADING], env={**os.environ, **told}, timeout=50, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
