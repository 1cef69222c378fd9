"""How the command line speaks: results to stdout, everything else to stderr, errors as one sentence without a trace."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Self

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipedec.errors import PipeDecError

Arguments = ParamSpec("Arguments")

notes = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
output = Console(markup=False, highlight=False)


def explained(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A command whose errors are printed for the person at the terminal, and end it with exit code 1."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except PipeDecError as error:
            notes.print(f"error: {error}", style="red")
            raise typer.Exit(1) from None

    return run


class Fetching:
    """Shows a model being fetched and prepared; a `pipedec.models.Progress`."""

    def __enter__(self) -> Self:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), console=notes, transient=True)
        self._progress.start()
        self._task = self._progress.add_task("", total=None, visible=False)
        self._said = ""
        return self

    def __call__(self, what: str, fraction: float | None) -> None:
        if not notes.is_terminal and _without_numbers(what) != self._said:
            self._said = _without_numbers(what)
            notes.print(what)
        total = None if fraction is None else 1.0
        self._progress.update(self._task, description=what, total=total, completed=fraction or 0.0, visible=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Board:
    """One line per process with what it is doing, until `close`; where there is no terminal, each change is a line."""

    def __init__(self, names: list[str]) -> None:
        self._states = dict.fromkeys(names, "starting")
        self._live = Live(self._table(), console=notes, transient=True) if notes.is_terminal else None
        if self._live is not None:
            self._live.start()

    def say(self, name: str, state: str) -> None:
        changed = _without_numbers(state) != _without_numbers(self._states[name])
        self._states[name] = state
        if self._live is not None:
            self._live.update(self._table())
        elif changed:
            notes.print(f"{name}: {state}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, state in self._states.items():
            table.add_row(name, state, style="green" if state == "ready" else "")
        return table


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "", text)
