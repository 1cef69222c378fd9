"""What can be said of the chart without helm: it carries the CRD, and grants what the operator calls, no more."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipedec import __version__
from pipedec_operator import names

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "pipedec"


def test_the_charts_crd_is_the_one_in_crds() -> None:
    """After a change: `cp crds/*.yaml charts/pipedec/crds/`."""
    files = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}
    assert files == {path.name: path.read_text() for path in (CHART / "crds").iterdir()}


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def granted() -> dict[tuple[str, str], set[str]]:
    """Verbs by API group and resource, as the chart's roles have them."""
    text = (CHART / "templates" / "_helpers.tpl").read_text()
    rules = text.split('{{- define "pipedec.rules" -}}')[1].split("{{- end -}}")[0]
    return {
        (group, resource): set(rule["verbs"])
        for rule in yaml.safe_load(rules)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_operator_may_do_what_it_does_and_no_more() -> None:
    watched = {"list", "watch"}
    kept = {"get", "list", "watch", "create", "patch", "delete"}
    expected = {(kind.group.split("/")[0], kind.plural): kept for kind in names.ALWAYS}
    expected |= {(kinds[0].group, kinds[0].plural): kept for kinds in (names.DISRUPTION_BUDGETS, names.POD_MONITORS)}
    expected[names.GROUP, names.PLURAL] = {"get", *watched}
    expected[names.GROUP, f"{names.PLURAL}/status"] = {"update"}
    expected[names.GROUP, f"{names.PLURAL}/finalizers"] = {"update"}
    expected["", "pods"] = watched
    expected["", "events"] = {"create"}
    expected["", "secrets"] = {"get", "create", "patch", "delete"}
    assert granted() == expected


def test_there_is_no_package_named_operator() -> None:
    """It would shadow the standard library's, and then Python itself does not start."""
    assert not (ROOT / "operator" / "__init__.py").exists()
