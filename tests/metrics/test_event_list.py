"""docs/logs.md has every event that the services log, with its fields, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("draft_service", "stage_service", "pipedec")


def calls() -> Iterator[tuple[str, set[str]]]:
    """The events logged with fields in the source, with the fields that are named there."""
    files = (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[0] not in (
            "_log",
            "log",
            "self._log",
        ):
            continue
        extra = next((each.value for each in node.keywords if each.arg == "extra"), None)
        if isinstance(extra, ast.Call) and ast.unparse(extra.func) == "fields":
            named = {each.arg for each in extra.keywords if each.arg}
            told = [each for argument in node.args for each in ast.walk(argument) if isinstance(each, ast.Constant)]
            for event in {each.value for each in told if isinstance(each.value, str) and each.value != "error"}:
                yield event, named


def test_the_page_has_the_events_of_the_services() -> None:
    page = (ROOT / "docs" / "logs.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| [A-Z, ]+ \| ([^|]*) \|", page, re.MULTILINE))
    listed = {event: set(re.findall(r"`(\w+)`", fields)) for event, fields in rows.items()}
    found: dict[str, set[str]] = {}
    for event, named in calls():
        found[event] = found.get(event, set()) | named
    assert len(found) > 20
    without_fields = {"stopped"}
    assert set(listed) - without_fields == set(found)
    for event, named in found.items():
        assert named <= listed[event], event
