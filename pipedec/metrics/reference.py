"""`python -m pipedec.metrics.reference docs/metrics.md`: writes the tables of that page anew from the declarations."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from pipedec.metrics.declared import head, operator, process, requests, stage
from pipedec.metrics.family import Family

SECTIONS: dict[str, tuple[Family, ...]] = {
    "stage": tuple(stage.families),
    "head": tuple(head.families),
    "requests": (*requests.families, *requests.responses),
    "operator": tuple(operator.families),
    "process": tuple(process.families),
}
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with the table of each section between its marks. Raises `ValueError` unless it has each one once."""
    found = [match[2] for match in _TABLE.finditer(page)]
    if sorted(found) != sorted(SECTIONS):
        raise ValueError(f"the page has tables {found}, but should have {[*SECTIONS]}")
    return _TABLE.sub(lambda match: f"{match[1]}\n{table(SECTIONS[match[2]])}\n{match[3]}", page)


def table(families: Iterable[Family]) -> str:
    """Markdown."""
    rows = [("Name", "Type", "Unit", "Labels", "What it says", "PromQL"), ("---",) * 6]
    for each in families:
        labels = "; ".join(f"`{label}`: {_described(values)}" for label, values in each.labels.items())
        rows.append((f"`{each.name}`", each.kind, each.unit, labels, each.text, f"`{each.query}`"))
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def _described(values: Iterable[str] | str) -> str:
    return values if isinstance(values, str) else ", ".join(values)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text()))
