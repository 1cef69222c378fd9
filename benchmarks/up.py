"""A pipeline as `pipedec up` runs it, seen from outside: its endpoint, its processes, their ports."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import psutil
import yaml

from pipedec.cli.ports import first_ephemeral
from pipedec.config import child_environment

Role = Literal["http", "control", "verdicts", "data", "health"]

_SERVICE = re.compile(r"draft|stage \d+")  # what its processes call themselves
_ROLES: dict[str, tuple[Role, Role]] = {"draft": ("control", "verdicts"), "stage": ("health", "data")}


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
    folder: Path
    """In which it has its own temporary folder."""

    def processes(self) -> dict[str, psutil.Process]:
        """Its services, by name."""
        return services(self.parent)

    @property
    def keys_dir(self) -> Path:
        """Its CURVE keys."""
        (keys,) = self.folder.glob("pipedec-*/keys")
        return keys

    def targets(self) -> list[Target]:
        """Every port that anything of it listens on. Control and health ports are told to the processes beforehand, so
        no outgoing connection may be given one; others the kernel chose."""
        found, http = [], int(self.url.rpartition(":")[2])
        for name, process in self.processes().items():
            told, chosen = _ROLES["draft" if name == "draft" else "stage"]
            ports = {link.laddr.port for link in process.net_connections("tcp") if link.status == psutil.CONN_LISTEN}
            for port in sorted(ports):
                role = told if port < first_ephemeral() else chosen
                found.append(Target(name, "http" if port == http else role, port))
        return found


def services(parent: psutil.Process) -> dict[str, psutil.Process]:
    """The service processes among the children of a process, by name."""
    found = {}
    for child in parent.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if _SERVICE.fullmatch(name := child.name()):
                found[name] = child
    return dict(sorted(found.items()))


@contextmanager
def running(resource: Mapping[str, Any], *options: str) -> Iterator[Up]:
    """Start a manifest, and end it. Raises `RuntimeError` with what it said if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.yaml"
        manifest.write_text(yaml.safe_dump(dict(resource)))
        command = [sys.executable, "-m", "pipedec.cli", "up", "-f", str(manifest), "--port", "0", *options]
        environment = child_environment({"TMPDIR": folder})
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as up:
            assert up.stdout is not None
            said: list[str] = []
            url = _wait_for_url(up.stdout, said)
            rest = Thread(target=said.extend, args=(up.stdout,))  # else it would wait for a reader one day
            rest.start()
            try:
                yield Up(url, psutil.Process(up.pid), said, Path(folder))
            finally:
                up.send_signal(signal.SIGINT)
                rest.join()


def _wait_for_url(lines: Iterable[str], said: list[str]) -> str:
    for line in lines:
        said.append(line)
        if found := re.search(r"served at (http://[\w.:]+)/v1", line):
            return found[1]
    raise RuntimeError("pipedec up ended:\n" + "".join(said))
