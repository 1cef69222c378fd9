"""How `pipedec top` draws what the live page's stream tells. Pure: frames in, something for rich out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from pipedec.cli.client import Json
from pipedec.words import counted

STEPS_IN_VIEW = 56  # of the slowest stage; as on the page
FRAME_HISTORY = 50  # batches that the mean of their rows is of
TREE_ROWS = 8
COLUMN = 12  # characters of a node in the tree

# By what became of a batch: its character, so that it can be told without colours too, and its colour.
KINDS = {
    "useful": ("█", "green"),
    "open": ("▒", "blue"),
    "wasted": ("░", "red"),
    "prompt": ("▚", "magenta"),
    "lost": ("x", "bold red"),
}
LEGEND = {
    "useful": "became text",
    "open": "guess under way",
    "wasted": "guess that was wrong",
    "prompt": "reading the prompt",
}


class View:
    """One pipeline. `gone`: nothing is heard of it any more."""

    def __init__(self, about: Json) -> None:
        self._about = about
        self._frame: Json = {}
        self._batches: dict[int, Json] = {}
        self._epoch = 0
        self._rows: list[tuple[int, int]] = []  # of the latest batches that are back: all, and those that became text
        self._tree: Json | None = None  # also of the request that is just over
        self.gone = False

    def show(self, frame: Json) -> None:
        """The next frame."""
        if frame["epoch"] != self._epoch:
            self._epoch = frame["epoch"]
            self._batches.clear()
        self._frame, self.gone = frame, False
        self._tree = frame["tree"] or self._tree
        for batch in frame["batches"]:
            self._batches[batch["step"]] = batch
            if batch["over"] and not batch["lost"] and not batch["prompt"]:
                rows = (batch["useful"] + batch["wasted"] + batch["open"], batch["useful"])
                self._rows = [*self._rows, rows][-FRAME_HISTORY:]
        oldest = frame["now"] - self._span()
        self._batches = {step: each for step, each in self._batches.items() if not _is_before(each, oldest)}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._headline()
        yield ""
        yield from self._speeds(options.max_width)
        yield self._figures()
        yield ""
        yield from self._lanes(options.max_width)
        yield ""
        yield from self._guesses(options.max_width)
        yield from self._faults()

    def _span(self) -> float:
        slowest: float = max(self._frame["stepMs"])
        return max(1000.0, min(12000.0, STEPS_IN_VIEW * slowest))

    def _headline(self) -> Text:
        frame, stages = self._frame, len(self._about["layers"])
        what = f"{self._about['model']} in {counted(stages, 'stage')}, policy {self._about['policy']}   "
        line = Text(what, style="bold")
        if self.gone:
            return line.append("the endpoint is gone; trying again", style="bold red")
        if not frame["ready"]:
            which = f"stage {', '.join(map(str, frame['missing']))} is lost: " if frame["missing"] else ""
            return line.append(f"{which}{frame['reason']}", style="bold red")
        if frame["degraded"]:
            return line.append(f"without the draft model: {frame['degraded']}", style="yellow")
        return line.append(f"answering {frame['running']}" if frame["running"] else "ready, idle", style="green")

    def _speeds(self, width: int) -> Iterator[Text]:
        ours, plain = self._frame["tokensPerSecond"], self._frame["plainTokensPerSecond"]
        most, room = max(ours or 0, plain or 0, 1e-9), max(10, width - 50)
        times = f"  {ours / plain:.1f} times" if ours and plain else ""
        for name, rate, style, note in (
            ("with predictions", ours, "green", times),
            ("without, at best", plain, "bright_black", "  calculated"),
        ):
            said = "-" if rate is None else f"{rate:.1f} tokens/s"
            bar = "━" * round(room * (rate or 0) / most)
            yield Text.assemble(f"{name}  {said:>15} ", (bar, style), note if rate else "")

    def _figures(self) -> Text:
        frame = self._frame
        busy = sum(frame["busy"]) / len(frame["busy"])
        all_rows, useful = (sum(each[i] for each in self._rows) / max(1, len(self._rows)) for i in (0, 1))
        return Text(
            f"{_percent(frame['hitRate'])} of words guessed before their turn   stages {_percent(busy)} at work   "
            f"{all_rows:.1f} rows a step, {useful:.1f} became text   "
            f"{frame['running']} running, {frame['waiting']} waiting",
            style="bold",
        )

    def _lanes(self, width: int) -> Iterator[Text | Table]:
        cells = max(10, width - 32)
        legend = Text("now is at the right; ")
        for kind, meaning in LEGEND.items():
            legend.append(KINDS[kind][0], KINDS[kind][1]).append(f" {meaning}  ")
        yield legend.append("(estimated)", "dim")
        table = Table.grid(padding=(0, 1))
        for stage, (first, stop) in enumerate(self._about["layers"]):
            lost = stage in self._frame["missing"]
            share, ms = _percent(self._frame["busy"][stage]), self._frame["stepMs"][stage]
            layers = f"layers {first}-{stop - 1}" if stop - first > 1 else f"layer {first}"
            label = Text(f"{stage:>2} {layers}", "bold red" if lost else "")
            lane = Text("lost; it is started again", "bold red") if lost else self._lane(stage, cells)
            table.add_row(label, lane, Text(f"{share:>5} {ms:.0f} ms", "dim"))
        yield table

    def _lane(self, stage: int, cells: int) -> Text:
        span = self._span()
        start, lane = self._frame["now"] - span, ["·"] * cells
        styles = ["bright_black"] * cells
        for batch in self._batches.values():
            spans = batch["spans"]
            if 2 * stage >= len(spans):
                continue
            begin, end = ((at - start) / span * cells for at in spans[2 * stage : 2 * stage + 2])
            kind = KINDS[_kind(batch)]
            for cell in range(max(0, int(begin)), min(cells, max(int(begin) + 1, int(end)))):
                lane[cell], styles[cell] = kind
        text = Text(no_wrap=True)
        for character, style in zip(lane, styles, strict=True):
            text.append(character, style)
        return text

    def _guesses(self, width: int) -> Iterator[Text]:
        """Decided words, then the guesses below the newest: the first child of a node is in its line."""
        tree = self._tree
        if tree is None:
            yield Text("no request yet", "dim")
            return
        path = tree["path"][-3:]
        indent = COLUMN * len(path)
        head = Text()
        for index, (_, _, _, text) in enumerate(path):
            head.append(_fitted(text), "reverse green" if index == len(path) - 1 else "green")
        children: dict[int, list[Any]] = {}
        for node in tree["nodes"]:
            children.setdefault(node[1], []).append(node)
        lines = list(_branches(children, tree["cursor"], 0))
        deepest = max(1, (width - indent) // COLUMN)
        yield Text(
            f"{counted(tree['output'], 'token')} decided; "
            f"{counted(len(tree['nodes']) + tree['hidden'], 'guess', 'guesses')} in the pipeline",
            "dim",
        )
        for number, (depth, words) in enumerate(lines[:TREE_ROWS] or [(0, [])]):
            line = head if number == 0 else Text(" " * indent)
            line.append(" " * (COLUMN * depth))
            for word in words[: max(0, deepest - depth)]:
                line.append(_fitted(word), "blue")
            line.truncate(width)
            yield line
        yield from (Text() for _ in range(TREE_ROWS - max(1, len(lines))))

    def _faults(self) -> Iterator[Text]:
        for fault in self._frame["faults"][-3:]:
            if fault["live"] is None:
                yield Text(f"{fault['reason']}: not over yet; running requests wait, and go on", "bold red")
            else:
                seconds = (fault["live"] - fault["lost"]) / 1000
                yield Text(f"{fault['reason']}: over after {seconds:.1f} s, no token was lost", "dim")


def _branches(children: dict[int, list[Any]], parent: int | None, depth: int) -> Iterator[tuple[int, list[str | None]]]:
    """Lines of a tree: where each begins, and its words."""
    for node in children.get(parent, ()) if parent is not None else ():
        below = list(_branches(children, node[0], depth + 1))
        first = below[0][1] if below else []
        yield depth, [node[4], *first]
        yield from below[1:]


def _kind(batch: Json) -> str:
    if batch["lost"]:
        return "lost"
    return next((kind for kind in ("useful", "open", "wasted") if batch[kind]), "prompt")


def _is_before(batch: Json, time: float) -> bool:
    return bool(batch["spans"]) and batch["spans"][-1] < time


def _fitted(text: str | None) -> str:
    """A node's word in its column; a dot where texts are not shown."""
    word = "●" if text is None else (text.strip() or "␣").replace("\n", "⏎")
    word = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in word)
    return f"{word[: COLUMN - 2]:<{COLUMN}}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
