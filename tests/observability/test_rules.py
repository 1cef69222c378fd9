"""The alerts: promtool runs the cases in alerts/, which say of each when it fires and when it does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from observability.__main__ import CHART
from observability.alerts import EVERY
from pipedec.spec.crd import crd
from tests.observability.prometheus import promtool
from tests.observability.queries import exported, metrics_of, runbook, runbook_queries, runbook_sections

CASES = sorted((Path(__file__).parent / "alerts").glob("*.yaml"))
RULES = CHART / "rules" / "pipedec.yaml"


def test_the_rules_are_valid() -> None:
    result = promtool("check", "rules", "--lint-fatal", str(RULES))
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("cases", CASES, ids=[path.stem for path in CASES])
def test_alerts_fire_when_they_should(cases: Path) -> None:
    result = promtool("test", "rules", str(cases))
    assert result.returncode == 0, result.stdout


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    expectations: list[dict[str, Any]] = [
        expectation
        for path in CASES
        for test in yaml.safe_load(path.read_text())["tests"]
        for expectation in test["alert_rule_test"]
    ]
    names = {alert.name for alert in EVERY}
    assert {each["alertname"] for each in expectations if each["exp_alerts"]} == names
    assert {each["alertname"] for each in expectations if not each["exp_alerts"]} == names


def test_every_metric_is_exported_by_that_name() -> None:
    for alert in EVERY:
        assert metrics_of(alert.expression) <= exported(), alert.name


def test_the_runbook_has_a_section_for_every_alert() -> None:
    assert list(runbook_sections()) == [alert.name for alert in EVERY]
    for alert in EVERY:
        assert alert.anchor == alert.name.lower()  # the anchor that Markdown gives its heading


@pytest.mark.parametrize(("title", "text"), runbook_sections().items(), ids=runbook_sections())
def test_a_section_says_what_it_means_and_what_to_do(title: str, text: str) -> None:
    parts = re.findall(r"^\*\*(Meaning|Impact|Diagnosis|Remedy)\.\*\* \S", text, flags=re.MULTILINE)
    assert parts == ["Meaning", "Impact", "Diagnosis", "Remedy"]
    diagnosis = text.partition("**Diagnosis.**")[2].partition("**Remedy.**")[0]
    assert "    kubectl " in diagnosis
    assert re.search(r"^    (?!kubectl )\S", diagnosis, flags=re.MULTILINE), "no query"


def test_the_runbooks_queries_are_of_metrics_that_there_are() -> None:
    for query in runbook_queries():
        assert metrics_of(query)
        assert metrics_of(query) <= exported(), query


def test_the_runbooks_fields_are_in_the_crd() -> None:
    fields = set(re.findall(r"`spec\.([\w.]+)`", runbook()))
    assert fields
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for field in fields:
        place = schema
        for name in field.split("."):
            place = place["properties"][name]
