"""`pipedec top`: a running pipeline in a terminal, from the same stream as the live page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from pipedec.api_key import read_api_key
from pipedec.cli.client import BREAKS, watch
from pipedec.cli.generate import DEFAULT_URL
from pipedec.cli.terminal import explained, notes, output
from pipedec.cli.view import View
from pipedec.errors import PipeDecError, UnavailableError

LOOK_SECONDS = 3.0  # of a single look: long enough for a rate
RETRY_SECONDS = 1.0


@explained
def top(
    url: Annotated[str, typer.Argument(help="The endpoint.")] = DEFAULT_URL,
    once: Annotated[bool, typer.Option("--once", help="Look once, print, end; so it is without a terminal.")] = False,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the endpoint's API key.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Watch a pipeline at work: what each stage computes, the guesses under way, how fast it goes. Ctrl-C ends it.

    In a cluster, forward the endpoint's port first:

        kubectl port-forward service/llama-70b 8000 &
        pipedec top http://127.0.0.1:8000
    """
    base = url.rstrip("/").removesuffix("/v1")
    api_key = read_api_key(api_key_file) if api_key_file else None
    if once or not output.is_terminal:
        output.print(_look(base, api_key))
        return
    try:
        with Live(console=output, screen=True, auto_refresh=False) as live:
            for view in _views(base, api_key):
                live.update(view, refresh=True)
    except KeyboardInterrupt:
        notes.print("no longer watching; the pipeline goes on", style="dim")


def _look(base: str, api_key: str | None) -> View:
    end = time.monotonic() + LOOK_SECONDS
    for view in _connection(base, api_key):
        if time.monotonic() >= end:
            return view
    raise UnavailableError(f"{base} closed the connection")


def _views(base: str, api_key: str | None) -> Iterator[View]:
    """For ever: an endpoint that was there once is tried again when it goes."""
    view: View | None = None
    while True:
        try:
            for view in _connection(base, api_key):
                yield view
        except UnavailableError:
            if view is None:
                raise
        if view is not None:
            view.gone = True
            yield view
        time.sleep(RETRY_SECONDS)


def _connection(base: str, api_key: str | None) -> Iterator[View]:
    """One view, again with every frame."""
    view: View | None = None
    try:
        for message in watch(base, api_key):
            if "about" in message:
                view = View(message["about"])
            elif view is None:
                raise PipeDecError(f"{base} does not speak as PipeDec does; is it another service?")
            else:
                view.show(message)
                yield view
    except BREAKS as error:
        raise UnavailableError(f"{base} closed the connection: {error}") from error
