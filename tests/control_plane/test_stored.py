"""What a tool deploys from a repository is stored as it was written: it compares the two for ever."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipedec.spec.crd import crd
from pipedec_operator.names import Object
from tests.control_plane.live import Lab
from tests.control_plane.test_chart import CHART, render

pytestmark = pytest.mark.e2e


def kubectl(lab: Lab, *arguments: str, given: str = "") -> str:
    command = ["kubectl", "--namespace", lab.namespace, *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


def lost(written: Any, stored: Any, path: str = "") -> Iterator[str]:
    """Where what is stored is not what was written; what the API server adds does not count."""
    if isinstance(written, dict) and isinstance(stored, dict):
        for name, value in written.items():
            yield from lost(value, stored.get(name), f"{path}.{name}")
    elif isinstance(written, list) and isinstance(stored, list) and len(written) == len(stored):
        for index, (each, there) in enumerate(zip(written, stored, strict=True)):
            yield from lost(each, there, f"{path}[{index}]")
    elif written != stored and not path.endswith(".x-kubernetes-validations"):  # which servers before 1.25 drop
        yield f"{path}: {written!r}, not {stored!r}"


def stored(lab: Lab, kind: str, name: str) -> Object:
    found: Object = json.loads(kubectl(lab, "get", kind, name, "--output=json"))
    return found


def test_the_crd_is(lab: Lab) -> None:
    written = crd()
    assert list(lost(written, stored(lab, "customresourcedefinition", written["metadata"]["name"]))) == []


def test_the_chart_is(lab: Lab) -> None:
    objects = render("metrics.dashboards.enabled=true", f"watchNamespaces={{{lab.namespace}}}", namespace=lab.namespace)
    objects = [each for each in objects if "helm.sh/hook" not in each["metadata"].get("annotations", {})]
    given = yaml.safe_dump_all(objects)
    kubectl(lab, "apply", "--server-side", "--filename=-", given=given)
    try:
        for each in objects:
            assert list(lost(each, stored(lab, each["kind"], each["metadata"]["name"]))) == []
    finally:
        kubectl(lab, "delete", "--wait=false", "--filename=-", given=given)


def test_a_resource_is(lab: Lab) -> None:
    written = yaml.safe_load((CHART.parents[1] / "examples" / "smollm2.yaml").read_text())
    lab.write(written)
    assert list(lost(written, stored(lab, "pipedecdeployment", written["metadata"]["name"]))) == []
