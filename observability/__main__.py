"""`python -m observability`: writes the chart's dashboards and rules anew."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from observability import alerts, fleet, pipeline
from observability.rules import groups

CHART = Path(__file__).parents[1] / "charts" / "pipedec"
_HEAD = "# Written by `python -m observability`; the chart's template puts its own runbookUrl in.\n"


def files() -> dict[Path, str]:
    """What the chart has of all this, by path."""
    written = {
        CHART / "dashboards" / f"{module.UID}.json": json.dumps(module.dashboard(), cls=JSONEncoder, indent=2) + "\n"
        for module in (pipeline, fleet)
    }
    rules = yaml.safe_dump(groups(alerts.GROUPS), sort_keys=False, width=1000)
    return {**written, CHART / "rules" / "pipedec.yaml": _HEAD + rules}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
