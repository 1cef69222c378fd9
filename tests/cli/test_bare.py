"""What the package can do without its extras, as on the machine of somebody who only plans."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tiny import tiny_model

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
BARE = """
import sys

absent = set(sys.argv.pop(1).split(","))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from pipedec.cli import app
from pipedec.models import hub
app()
"""


def needed(wanted: list[str]) -> set[str]:
    """The distributions that pip would install for these requirements."""
    found: set[str] = set()
    waiting = [Requirement(each) for each in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            waiting += [Requirement(each) for each in requires(name) or ()]
        except PackageNotFoundError:
            continue
        found.add(name)
    return found


@pytest.fixture(scope="module")
def absent() -> str:
    """The modules that are there for the extras alone."""
    kept = needed(tomllib.loads(PROJECT.read_text())["project"]["dependencies"]) | {"pipedec", "pip", "setuptools"}
    modules = packages_distributions().items()
    return ",".join(name for name, owners in modules if not kept & {canonicalize_name(each) for each in owners})


def test_manifests_are_validated_planned_and_examined(absent: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    manifest = tmp_path / "tiny.yaml"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", BARE, absent, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert {"torch", "transformers", "zmq", "fastapi", "kubernetes"} <= set(absent.split(","))
    manifest.write_text(run("plan", "--model", f"file://{model}", "--gpu", "L4", "--stages", "2"))
    assert "is valid" in run("validate", "-f", str(manifest))
    assert "embedding" in run("split", "-f", str(manifest))
    assert json.loads(run("doctor", "-f", str(manifest), "--json"))["status"] == 0
