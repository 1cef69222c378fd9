"""Pictures for the documentation. Needs matplotlib, of the `dev` extra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from benchmarks.comparison import OVERALL, Result
from benchmarks.simulation import Span

COLOURS = {"none": "#8a8f98", "static-tree": "#d9a441", "pipedec": "#4c8fbd", "adaptive": "#c2413b"}
INK, FAINT = "#22262b", "#d7dade"
CERTAIN, USEFUL, WASTED = "#22262b", "#2f8f6b", "#e9cfcb"
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


def plot_agreement(curves: Mapping[int, Mapping[str, Sequence[tuple[float, float]]]], file: Path) -> None:
    """Speed-up over `none` against the draft's agreement: a panel for each number of stages, a line per policy."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(curves), figsize=(4 * len(curves), 4.4), layout="constrained")
        for axes, (stages, points) in zip(panels, curves.items(), strict=True):
            _lines(axes, points)
            axes.set_title(f"{stages} stages", loc="left", fontsize=12, weight="bold")
            axes.set_xlabel("top-1 agreement of the emulated draft")
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel("times as fast as plain pipeline parallelism")
        _save(figure, file)


def _lines(axes: Axes, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
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


def plot_timelines(
    timelines: Mapping[str, Sequence[Span]],
    useful: Mapping[str, Mapping[int, int]],
    verdicts: Mapping[str, Sequence[float]],
    stages: int,
    window: tuple[float, float],
    title: str,
    file: Path,
) -> None:
    """What each stage computes over time, one panel for each policy.

    `useful[policy][step]`: how many rows of that batch lie on the answer's path. `verdicts[policy]`: when each token
    was decided, seconds. A batch's colour says what share of it was worth computing, by the tokens that came of it.
    """
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, panels = plt.subplots(
            len(timelines), 1, figsize=(11, 2.6 * len(timelines)), sharex=True, layout="constrained"
        )
        for axes, (policy, spans) in zip(panels, timelines.items(), strict=True):
            _timeline(axes, spans, useful[policy], stages, window)
            tokens = [t for t in verdicts[policy] if window[0] <= t <= window[1]]
            axes.plot([1000 * (t - window[0]) for t in tokens], [stages - 0.1] * len(tokens), "v", color=INK, ms=4.5)
            axes.set_title(f"{policy}", loc="left", fontsize=12, weight="bold", color=COLOURS[policy])
            axes.set_title(f"{len(tokens)} tokens", loc="right", fontsize=11)
        panels[-1].set_xlabel("milliseconds")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, weight="bold")
        legend = [
            Patch(color=USEFUL, label="a batch that decides tokens (paler: one, darker: several)"),
            Patch(color=WASTED, label="a batch of which nothing comes true"),
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
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
            alpha=min(1.0, 0.45 + 0.22 * tokens) if tokens else 1.0,
            lw=0,
        )
        axes.add_patch(box)
    axes.set_xlim(0, 1000 * (window[1] - window[0]))
    axes.set_ylim(stages + 0.25, -0.05)
    axes.set_yticks([stage + 0.5 for stage in range(stages)], [f"{stage}" for stage in range(stages)], fontsize=8)
    axes.set_ylabel("stage")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=160)
    plt.close(figure)
