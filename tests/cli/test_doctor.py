"""`pipedec doctor` as a user runs it, but for a running pipeline, which is examined in `test_up`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_client import endpoint
from tests.cli.test_commands import run


def checks(text: str) -> dict[str, dict[str, str]]:
    """The findings of a JSON report, by check."""
    report: dict[str, Any] = json.loads(text)
    return {each["check"]: each for section in report["findings"].values() for each in section}


def test_a_good_manifest_ends_with_zero(manifest: Path) -> None:
    code, out, _ = run("doctor", "-f", str(manifest), "--gpu", "L4")
    assert code == 0
    assert re.search(r"^  ok    manifest  tiny is valid$", out, re.MULTILINE)
    assert out.splitlines()[-1].endswith("ok")


def test_an_unknown_gpu_is_answered_with_those_that_are_known(manifest: Path) -> None:
    code, _, err = run("doctor", "-f", str(manifest), "--gpu", "H1000")
    assert code == 1
    assert "--gpu H1000: is not in the table (did you mean H100?). Known: T4, " in err
    assert "--gpu-memory" not in err


def test_a_bad_one_ends_with_two_and_says_what_to_do(manifest: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(manifest.read_text().replace("targetLayers: 2", "targetLayers: 9"))
    code, out, _ = run("doctor", "-f", str(bad))
    assert code == 2
    assert re.search(r"^  fail  draft .*\n {14,}-> Write 4 or less$", out, re.MULTILINE)


def test_an_endpoint_that_is_not_there_is_said() -> None:
    code, out, _ = run("doctor", "--url", "http://127.0.0.1:1")
    assert code == 2
    assert "nothing answers at http://127.0.0.1:1" in out


@pytest.mark.parametrize("url", ["foo", "file:///etc/hosts", "http://127.0.0.1:80a", "http://a b"])
def test_what_is_no_url_is_a_finding(url: str) -> None:
    code, out, _ = run("doctor", "--url", url, "--json")
    assert (code, checks(out)["health"]["level"]) == (2, "fail")


@pytest.mark.parametrize(
    ("body", "status", "check"),
    [
        (b"<html>\n<a href='x'>", 200, "health"),
        (b"<html>\n<a href='x'>", 200, "models"),
        (b'{"error": "no such page"}', 404, "health"),
        (b"", 404, "health"),
        (b'{"data": []}', 200, "models"),
        (b'{"data": [5, {"id": "lion"}]}', 200, "models"),
        (b'{"data": 5}', 200, "models"),
        (b"\xff", 200, "metrics"),
    ],
)
def test_another_service_fails_the_checks(body: bytes, status: int, check: str) -> None:
    with endpoint(body, status) as (url, _):
        code, out, _ = run("doctor", "--url", url, "--json")
    found = checks(out)[check]
    assert (code, found["level"]) == (2, "fail")
    assert found["message"]
    assert found["remedy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "there is nothing to check"),
        (("--cluster", "--gpu", "L4"), "--gpu to --file"),
    ],
)
def test_contradictions_are_refused(arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run("doctor", *arguments)
    assert code == 2
    assert words in err


def test_without_a_cluster_in_kubeconfig_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    code, _, err = run("doctor", "--cluster")
    assert code == 1
    assert "--cluster: no cluster in KUBECONFIG" in err


def test_without_the_kubernetes_client_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)  # as where it is not installed
    code, _, err = run("doctor", "--cluster")
    assert code == 1
    assert "pip install 'pipedec[operator]'" in err
