"""When to call somebody. Each alert has a section in docs/runbook.md."""

from __future__ import annotations

from observability.alerts import fleet, pipeline
from observability.rules import Alert

GROUPS: dict[str, tuple[Alert, ...]] = {
    "pipedec.service": pipeline.SERVICE,
    "pipedec.speed": pipeline.SPEED,
    "pipedec.security": pipeline.SECURITY,
    "pipedec.fleet": fleet.ALERTS,
}
EVERY = tuple(alert for group in GROUPS.values() for alert in group)
