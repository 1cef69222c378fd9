"""A pipeline as `pipedec up` runs it, seen from outside: its endpoint, its processes, their ports."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import psutil
import yaml

Role = Literal["http", "control", "verdicts", "data", "health"]


@dataclass(frozen=True, slots=True)
class Target:
    """One port of one process; `process` is `draft` or `stage N`."""

    process: str
    role: Role
    port: int


@dataclass(frozen=True, slots=True)
class Up:
    """A running pipeline; `said` is every line that it has printed."""

    url: str
    parent: psutil.Process
    said: list[str]

    def processes(self) -> dict[str, psutil.Process]:
        """Its services, by name."""
        return services(self.parent)

    @property
    def keys_dir(self) -> Path:
        """Its CURVE keys."""
        return Path(self.processes()["draft"].environ()["PIPEDEC_KEYS_DIR"])

    def targets(self) -> list[Target]:
        """Every port that anything of it listens on."""
        found = []
        for name, process in self.processes().items():
            environment = process.environ()
            roles: dict[int, Role] = {int(self.url.rpartition(":")[2]): "http"}
            for variable, role in (("PIPEDEC_CONTROL_PORT", "control"), ("PIPEDEC_METRICS_PORT", "health")):
                if variable in environment:
                    roles[int(environment[variable])] = role  # type: ignore[assignment]
            other: Role = "verdicts" if name == "draft" else "data"
            ports = {link.laddr.port for link in process.net_connections("tcp") if link.status == psutil.CONN_LISTEN}
            found += [Target(name, roles.get(port, other), port) for port in sorted(ports)]
        return found


def services(parent: psutil.Process) -> dict[str, psutil.Process]:
    """The service processes among the children of a process, by name."""
    found = {}
    for child in parent.children():
        try:
            environment = child.environ()
        except psutil.Error:  # it has just ended
            continue
        if "PIPEDEC_MANIFEST" in environment:
            index = environment.get("PIPEDEC_STAGE_INDEX")
            found["draft" if index is None else f"stage {index}"] = child
    return dict(sorted(found.items()))


@contextmanager
def running(resource: Mapping[str, Any], *options: str) -> Iterator[Up]:
    """Start a manifest, and end it. Raises `RuntimeError` with what it said if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.yaml"
        manifest.write_text(yaml.safe_dump(dict(resource)))
        command = [sys.executable, "-m", "pipedec.cli", "up", "-f", str(manifest), "--port", "0", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
            assert up.stdout is not None
            said: list[str] = []
            url = _wait_for_url(up.stdout, said)
            rest = Thread(target=said.extend, args=(up.stdout,))  # else it would wait for a reader one day
            rest.start()
            try:
                yield Up(url, psutil.Process(up.pid), said)
            finally:
                up.send_signal(signal.SIGINT)
                rest.join()


def _wait_for_url(lines: Iterable[str], said: list[str]) -> str:
    for line in lines:
        said.append(line)
        if found := re.search(r"served at (http://[\w.:]+)/v1", line):
            return found[1]
    raise RuntimeError("pipedec up ended:\n" + "".join(said))
