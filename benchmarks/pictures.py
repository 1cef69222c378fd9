"""Pictures for the documentation. Needs matplotlib, of the `dev` extra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from pipedec.words import counted

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from benchmarks.comparison import OVERALL, Result
from benchmarks.simulation import Span
from benchmarks.step_time import StepTime, Variant
from pipedec.policy import PolicyName

COLOURS = {"none": "#8a8f98", "static-tree": "#d9a441", "pipedec": "#4c8fbd", "adaptive": "#c2413b"}
INK, FAINT = "#22262b", "#d7dade"
USEFUL, WASTED = "#2f8f6b", "#efd3cf"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef0",
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
}


def plot_speedups(results: Sequence[Result], draft: str, file: Path) -> None:
    """Speed-up over `none` against the number of stages, a line for each policy."""
    overall = [result for result in results if result.kind == OVERALL and "none" in result.over]
    points = {
        policy: [(r.stages, r.over["none"]) for r in overall if r.policy == policy]
        for policy in dict.fromkeys(r.policy for r in overall)
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        _lines(axes, points)
        axes.set_xticks(sorted({r.stages for r in overall}))
        axes.set_xlabel("stages")
        axes.set_ylabel("times as fast as plain pipeline parallelism")
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        axes.set_title("One request through a pipeline", loc="left", fontsize=14, pad=24, weight="bold")
        axes.text(0, 1.03, draft, transform=axes.transAxes, color="#6b7178", fontsize=10)
        _save(figure, file)


def plot_agreement(table: Mapping[int, Mapping[float, Mapping[PolicyName, float]]], file: Path) -> None:
    """Speed-up over `none` against the draft's agreement with the target, by policy: a panel for each of these stages.

    `table`: stages -> agreement -> policy -> speed-up.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(table), figsize=(4.4 * len(table), 4.6), sharey=True, layout="constrained")
        for axes, (stages, by_agreement) in zip(panels, sorted(table.items()), strict=True):
            agreements = sorted(by_agreement)
            for policy in by_agreement[agreements[0]]:
                speed = [by_agreement[agreement][policy] for agreement in agreements]
                axes.plot(agreements, speed, color=COLOURS[policy], lw=2.6 if policy == "adaptive" else 1.8, marker="o")
            axes.set_title(counted(stages, "stage"), loc="left", fontsize=12, weight="bold")
            axes.set_xlabel("share of positions at which the draft's first choice is the target's")
            axes.xaxis.label.set_fontsize(9)
            axes.set_xticks(agreements, [f"{agreement:g}" for agreement in agreements], fontsize=9)
        panels[0].set_ylabel("times as fast as plain pipeline parallelism")
        panels[0].set_ylim(bottom=0)
        handles = [Line2D([], [], color=COLOURS[name], marker="o", label=name) for name in reversed(COLOURS)]
        panels[0].legend(handles=handles, frameon=False, loc="upper left")
        _save(figure, file)


def _lines(axes: Axes, points: Mapping[PolicyName, Sequence[tuple[float, float]]]) -> None:
    ends = []
    for policy, line in points.items():
        x, y = zip(*line, strict=True)
        heavy = policy == "adaptive"
        axes.plot(x, y, color=COLOURS[policy], lw=2.6 if heavy else 1.8, marker="o", ms=5.5 if heavy else 4)
        ends.append((y[-1], x[-1], policy))
    apart = 0.05 * max(y for y, _, _ in ends)
    level = -apart
    for y, x, policy in sorted(ends):
        level = max(y, level + apart)
        axes.annotate(
            f"{policy}  {y:.1f}x",
            (x, level),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[policy],
            weight="bold" if policy == "adaptive" else "normal",
            annotation_clip=False,
        )


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request decoded: what each stage computed, how many tokens each batch decided, and when (seconds)."""

    spans: Sequence[Span]
    decided: Mapping[int, int]  # by step
    times: Sequence[float]


def plot_timelines(
    timelines: Mapping[PolicyName, Timeline], stages: int, after: float, seconds: float, draft: str, file: Path
) -> None:
    """One panel for each policy: `seconds` of it, beginning `after` its first token. A batch's colour says whether
    tokens came of it; marks below are the tokens."""
    with plt.rc_context({**STYLE, "axes.grid": False}):
        height = 0.9 + 0.19 * stages
        figure, panels = plt.subplots(
            len(timelines), 1, figsize=(11, height * len(timelines) + 0.8), sharex=True, layout="constrained"
        )
        for axes, (policy, timeline) in zip(panels, timelines.items(), strict=True):
            start = timeline.times[0] + after - stages * 0.02
            _timeline(axes, timeline.spans, timeline.decided, stages, (start, start + seconds))
            tokens = [1000 * (t - start) for t in timeline.times if start <= t <= start + seconds]
            axes.plot(tokens, [stages + 0.55] * len(tokens), "^", color=INK, ms=4.5, clip_on=False)
            axes.set_title(policy, loc="left", fontsize=12, weight="bold", color=COLOURS[policy])
            axes.set_title(counted(len(tokens), "token"), loc="right", fontsize=11)
        panels[-1].set_xlabel(f"milliseconds        ({draft})")
        marker = Line2D([], [], marker="^", color=INK, ls="", ms=5, label="a token is known")
        legend = [
            Patch(color=USEFUL, alpha=0.5, label="a batch that decides one token"),
            Patch(color=USEFUL, label="two or more"),
            Patch(color=WASTED, label="none: its predictions do not come true"),
            marker,
        ]
        figure.legend(handles=legend, loc="outside upper center", ncols=4, frameon=False, fontsize=10)
        _save(figure, file)


def _timeline(
    axes: Axes, spans: Iterable[Span], useful: Mapping[int, int], stages: int, window: tuple[float, float]
) -> None:
    for span in spans:
        if not span.rows or span.end <= span.start or span.end < window[0] or span.start > window[1]:
            continue
        left, right = max(span.start, window[0]), min(span.end, window[1])
        tokens = useful.get(span.step, 0)
        box = Rectangle(
            (1000 * (left - window[0]), span.stage + 0.08),
            1000 * (right - left) - 0.8,
            0.84,
            facecolor=USEFUL if tokens else WASTED,
            alpha=0.5 if tokens == 1 else 1.0,
            lw=0,
        )
        axes.add_patch(box)
    axes.set_xlim(0, 1000 * (window[1] - window[0]))
    axes.set_ylim(stages + 0.9, -0.05)
    axes.set_yticks([stage + 0.5 for stage in range(stages)], [f"{stage}" for stage in range(stages)], fontsize=8)
    axes.set_ylabel("stage")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


VARIANT_COLOURS: dict[Variant, str] = {
    "eager": "#8a8f98",
    "static": "#4c8fbd",
    "kernel": "#d9a441",
    "fused": "#c2413b",
    "invariant": "#3f7d58",
}


def plot_step_times(times: Sequence[StepTime], what: str, file: Path) -> None:
    """Milliseconds of a step against rows, a panel for each context; the bound below."""
    contexts = dict.fromkeys(time.context for time in times)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(contexts), figsize=(1 + 5 * len(contexts), 4.5), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, context in zip(panels[0], contexts, strict=True):
            here = [time for time in times if time.context == context]
            for variant in dict.fromkeys(time.variant for time in here):
                line = [(time.rows, time.queued) for time in here if time.variant == variant]
                axes.plot(*zip(*line, strict=True), color=VARIANT_COLOURS[variant], marker="o", ms=4.5, label=variant)
            axes.axhline(here[0].bound, color=INK, ls=":", lw=1.4, label="bound: its bytes, read once")
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({time.rows for time in here}), [str(r) for r in sorted({t.rows for t in here})])
            axes.set_title(f"context {context}", loc="left", fontsize=12)
            axes.set_xlabel("rows")
        panels[0][0].set_ylabel("milliseconds of a step")
        panels[0][0].set_ylim(bottom=0)
        panels[0][0].legend(frameon=False, fontsize=10)
        figure.suptitle(what, x=0.01, ha="left", fontsize=14, weight="bold")
        _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=160)
    plt.close(figure)
