"""A real Prometheus, and what one asks it. Debian's package has its programs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pipedec.cli.ports import LOOPBACK, free_ports


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where it is absent."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}; apt-get install prometheus")
    return found


def promtool(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; standard output and error come together, as it says what is wrong on either."""
    return subprocess.run(
        [program("promtool"), *arguments], input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


class Prometheus:
    """A running Prometheus."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now. Raises `AssertionError` with Prometheus' own words."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{answer['error']}\n{expression}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """The one value that an expression gives; 0 if none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else 0.0

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._client.get("/api/v1/targets").json()["data"]["activeTargets"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every alerting rule, with its health and the error of its last evaluation."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def series(self, selector: str) -> list[dict[str, str]]:
        """Labels of the series of a selector, without looking at values."""
        found: list[dict[str, str]] = self._client.get("/api/v1/series", params={"match[]": selector}).json()["data"]
        return found


@contextmanager
def running(config: Mapping[str, Any], folder: Path) -> Iterator[Prometheus]:
    """Prometheus with this configuration and everything it writes in `folder`, on a port of its own."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
    (port,) = free_ports(1)
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={LOOPBACK}:{port}",
        "--log.level=warn",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://{LOOPBACK}:{port}") as client,
    ):
        try:
            eventually(lambda: _ready(client, process, folder / "log"))
            yield Prometheus(client)
        finally:
            process.terminate()


def _ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return client.get("/-/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def eventually(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
