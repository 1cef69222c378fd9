"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.comparison import OVERALL, Result
from pipedec.words import counted

BASELINES = ("none", "static-tree", "pipedec")


def print_results(results: Sequence[Result], draft: str, agreements: dict[int, float] | None, console: Console) -> None:
    """One table for each number of stages: by kind of prompt, then over all of them."""
    console.print(f"draft: {draft}")
    if agreements is not None:
        listed = ", ".join(f"first {top}: {share:.3f}" for top, share in agreements.items())
        console.print(f"the target's choice is among the draft's {listed}")
    for stages in dict.fromkeys(result.stages for result in results):
        console.print(_table(stages, [result for result in results if result.stages == stages]))


def _table(stages: int, results: Sequence[Result]) -> Table:
    table = Table(title=counted(stages, "stage"), title_justify="left", title_style="bold")
    table.add_column("prompts")
    table.add_column("policy")
    headings = ("tokens/s", "median ms", "p99 ms", *(f"x {name}" for name in BASELINES))
    for heading in (*headings, "hit rate", "tokens/step", "rows/step", "wasted", "of bound"):
        table.add_column(heading, justify="right")
    for index, result in enumerate(results):
        outcome = result.outcome
        last = index + 1 == len(results) or results[index + 1].kind != result.kind
        table.add_row(
            result.kind,
            _name(result),
            f"{outcome.tokens_per_second:.1f}",
            f"{1000 * outcome.median:.1f}",
            f"{1000 * outcome.p99:.1f}",
            *(f"{result.over[name]:.2f}" if name in result.over else "" for name in BASELINES),
            f"{outcome.hit_rate:.3f}",
            f"{outcome.tokens_per_step:.2f}",
            f"{outcome.rows_per_step:.1f}",
            f"{outcome.wasted:.1%}",
            f"{result.bound_share:.1%}",
            style="bold" if result.kind == OVERALL else None,
            end_section=last,
        )
    return table


def _name(result: Result) -> str:
    if result.policy == "static-tree":
        return f"static-tree {result.tuning.width}x{result.tuning.depth}"
    return result.policy
