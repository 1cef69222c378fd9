"""The speed-ups that `pipedec plan` reckons with: every policy over stages, agreement and draft time.

    python -m benchmarks.sizing pipedec/data/speedup.json

Fills in what the file lacks, a cell at a time, so it may be interrupted; delete the file to measure all again (about an
hour on one core, the record excepted). Each cell is `benchmarks.speedup` on the 24 held-out prompts with an emulated
draft: times are of a stage of 20 ms for up to 64 rows and a link of 0.5 ms; `draft time` is that of one run of the
draft as a share of a stage's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import speedup
from benchmarks.comparison import OVERALL

STAGES = (1, 2, 4, 8, 14, 20)
AGREEMENTS = (0.5, 0.65, 0.76, 0.9)
DRAFT_TIMES = (0.25, 0.5, 1.0)
STAGE_MS = 20.0
COMMAND = "python -m benchmarks.sizing pipedec/data/speedup.json"

Json = dict[str, Any]


def cells() -> Iterator[tuple[float, float, int]]:
    """Draft time, agreement, stages; what is asked for most comes first."""
    for draft_time in DRAFT_TIMES:
        for agreement in sorted(AGREEMENTS, key=lambda a: abs(a - 0.76)):
            for stages in STAGES:
                yield draft_time, agreement, stages


def measure(draft_time: float, agreement: float, stages: int, jobs: int | None) -> dict[str, float]:
    """Speed-up of each policy over plain pipeline parallelism."""
    options = speedup.parser().parse_args([
        f"--stages={stages}", f"--draft=emulated:{agreement}", "--split=held-out", "--static-widths=8",
        f"--stage-ms={STAGE_MS}", f"--draft-ms={draft_time * STAGE_MS}",
    ])  # fmt: skip
    options.jobs = jobs
    with Progress(console=Console(stderr=True), transient=True) as progress:
        _, _, results = speedup.measure(options, progress)
    return {result.policy: round(result.over["none"], 3) for result in results if result.kind == OVERALL}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the table, completed in place")
    parser.add_argument("--jobs", type=int, help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    table: Json = json.loads(options.file.read_text()) if options.file.exists() else {}
    table |= {"source": COMMAND, "free_rows": 64}
    for draft_time, agreement, stages in cells():
        row = table.setdefault("draft_time", {}).setdefault(str(draft_time), {}).setdefault(str(stages), {})
        if str(agreement) not in row:
            row[str(agreement)] = measure(draft_time, agreement, stages, options.jobs)
            options.file.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
