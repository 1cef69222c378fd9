"""The command line, `pipedec`. Commands load what is heavy (models, the Hub's client) only when they need it."""

from __future__ import annotations

from typing import Annotated

import typer

import pipedec
from pipedec.cli.cache import models
from pipedec.cli.doctor import doctor
from pipedec.cli.generate import generate
from pipedec.cli.manifests import split, validate
from pipedec.cli.plan import plan
from pipedec.cli.top import top
from pipedec.cli.up import up

app = typer.Typer(
    name="pipedec",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve a large language model from many small devices, one request over all of them at once.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(pipedec.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


app.command()(up)
app.command()(generate)
app.command()(top)
app.command()(validate)
app.command()(split)
app.command()(plan)
app.command()(doctor)
app.add_typer(models, name="models")
