"""Alerts, as a file of Prometheus rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["critical", "warning", "info"]
RUNBOOK = "docs/runbook.md"
"""Where alerts are explained; the chart puts in its place what its users have."""


def label(name: str) -> str:
    """In a summary or description, what the series has for a label."""
    return f"{{{{ $labels.{name} }}}}"


def value(form: str) -> str:
    """In a summary or description, the series' value: `humanize`, `humanizePercentage`, `humanizeDuration`."""
    return f"{{{{ $value | {form} }}}}"


@dataclass(frozen=True, slots=True)
class Alert:
    """Fires when `expression` has given a series for as long as `after`.

    `summary` and `description` are Prometheus' templates over that series.
    """

    name: str
    severity: Severity
    after: str
    expression: str
    summary: str
    description: str

    @property
    def anchor(self) -> str:
        """Of its section in the runbook."""
        return self.name.lower()

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.after,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOK}#{self.anchor}",
            },
        }


def groups(alerts: Mapping[str, Iterable[Alert]]) -> dict[str, Any]:
    """The rules file; alerts by group."""
    return {"groups": [{"name": name, "rules": [each.rule() for each in group]} for name, group in alerts.items()]}
