"""The speed-ups that `pipedec plan` reckons with: every policy over stages, agreement and draft time.

    python -m benchmarks.sizing pipedec/data/speedup.json

Fills in what the file lacks, a cell at a time, so it may be interrupted; delete the file to measure all again (about
half an hour on one idle core, the record excepted). Each cell is `benchmarks.speedup` on the 24 held-out prompts with
an emulated draft: times are of a stage of 20 ms for up to 64 rows and a link of 0.5 ms; `draft time` is that of one
run of the draft as a share of a stage's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress

from benchmarks import speedup
from benchmarks.comparison import OVERALL
from pipedec.policy import PolicyName

STAGES = (1, 2, 4, 8, 14, 20)
# Agreements by draft time: what a slow draft costs is measured at one of them.
GRID = {0.25: (0.4, 0.5, 0.65, 0.76, 0.9, 0.95), 0.5: (0.76,), 1.0: (0.76,)}
PICTURED = (4, 8, 14)
STAGE_MS = 20.0
COMMAND = "python -m benchmarks.sizing pipedec/data/speedup.json"

Json = dict[str, Any]
Rows = dict[tuple[float, int, float], dict[str, float]]


def cells() -> Iterator[tuple[float, int, float]]:
    """Draft time, stages, agreement."""
    for draft_time, agreements in GRID.items():
        yield from ((draft_time, stages, agreement) for stages in STAGES for agreement in agreements)


def load(file: Path) -> Rows:
    """The cells that the file has."""
    if not file.exists():
        return {}
    table: Json = json.loads(file.read_text())["draft_time"]
    found = {
        (float(draft_time), int(stages), float(agreement)): row
        for draft_time, by_stages in table.items()
        for stages, by_agreement in by_stages.items()
        for agreement, row in by_agreement.items()
    }
    return {cell: found[cell] for cell in cells() if cell in found}


def save(file: Path, rows: Rows) -> None:
    table: Json = {}
    for (draft_time, stages, agreement), row in sorted(rows.items()):
        table.setdefault(str(draft_time), {}).setdefault(str(stages), {})[str(agreement)] = row
    file.write_text(json.dumps({"source": COMMAND, "free_rows": 64, "draft_time": table}, indent=1) + "\n")


def measure(draft_time: float, stages: int, agreement: float, jobs: int | None) -> dict[str, float]:
    """Speed-up of each policy over plain pipeline parallelism."""
    options = speedup.parser().parse_args([
        f"--stages={stages}", f"--draft=emulated:{agreement}", "--split=held-out", "--static-widths=8",
        f"--stage-ms={STAGE_MS}", f"--draft-ms={draft_time * STAGE_MS}",
    ])  # fmt: skip
    options.jobs = jobs
    with Progress(console=Console(stderr=True), transient=True) as progress:
        found = speedup.measure(options, progress)
    return {result.policy: round(result.over["none"], 3) for result in found.results if result.kind == OVERALL}


def by_agreement(rows: Rows) -> dict[int, dict[float, dict[PolicyName, float]]]:
    """Speed-ups with the fastest draft, of pictured numbers of stages."""
    table: dict[int, dict[float, dict[PolicyName, float]]] = {stages: {} for stages in PICTURED}
    for (draft_time, stages, agreement), row in rows.items():
        if draft_time == min(GRID) and stages in table:
            table[stages][agreement] = {policy: row[policy] for policy in get_args(PolicyName)}
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the table, completed in place")
    parser.add_argument("--jobs", type=int, help="processes (default: one per core)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture of speed-up against agreement")
    options = parser.parse_args(arguments)
    rows = load(options.file)
    for cell in cells():
        if cell not in rows:
            rows[cell] = measure(*cell, options.jobs)
            save(options.file, rows)
    if options.plot:
        from benchmarks.pictures import plot_agreement

        plot_agreement(by_agreement(rows), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
