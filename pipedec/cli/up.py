"""`pipedec up`: a manifest as processes of this machine."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipedec.api_key import read_api_key
from pipedec.cli.local import Local, LocalPipeline, check_local, plan_processes, with_folders, with_policy
from pipedec.cli.ports import held
from pipedec.cli.serve import serve
from pipedec.cli.terminal import Fetching, explained, notes
from pipedec.config import model_cache
from pipedec.partition import split_layers
from pipedec.spec import PipeDecDeployment, load_manifest
from pipedec.words import counted

ManifestOption = Annotated[Path, typer.Option("--file", "-f", help="The manifest.", metavar="FILE")]
PolicyOption = Annotated[
    str | None, typer.Option(help="Speculation policy instead of the manifest's: none, static-tree, pipedec, adaptive.")
]
ApiKeyFileOption = Annotated[
    Path | None, typer.Option(help="File with the key that clients must send.", exists=True, dir_okay=False)
]


@explained
def up(
    file: ManifestOption,
    host: Annotated[str, typer.Option(help="Address that the endpoint listens on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port of the endpoint, 0: any free one; else the manifest's.", min=0, max=65535)
    ] = None,
    policy: PolicyOption = None,
    api_key_file: ApiKeyFileOption = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Torch device such as cuda:0; given several times, dealt out to the draft, then the stages."),
    ] = None,
    show_text: Annotated[
        bool | None,
        typer.Option(
            "--show-text/--no-show-text",
            help="Show texts on the live page; else as the manifest says, or where only this machine can reach it.",
        ),
    ] = None,
    restart: Annotated[bool, typer.Option(help="Start a process again that ended by itself.")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all log lines of all processes.")] = False,
) -> None:
    """Run a manifest on this machine: the draft and every stage, each a process, behind one OpenAI-compatible endpoint.

    The model is fetched if it is not in the cache yet. Ctrl-C ends everything, after the running requests; a second one
    ends it at once. What only a cluster has (replicas, resources, images, Secrets) is left out or refused.

        pipedec up -f examples/smollm2.yaml
    """
    manifest = with_policy(load_manifest(file), policy)
    local = Local(host, port, api_key_file, tuple(device or ()), None if verbose else "WARNING", show_text)

    with local_pipeline(manifest, local) as pipeline:

        async def announce() -> None:
            notes.print(_greeting(pipeline, manifest.spec.serving.live_page.enabled, api_key_file))
            await asyncio.Event().wait()

        asyncio.run(serve(pipeline, announce, restart=restart, verbose=verbose))


@contextmanager
def local_pipeline(manifest: PipeDecDeployment, local: Local) -> Iterator[LocalPipeline]:
    """A pipeline ready to be served; its models are fetched, and its private folder exists for as long as this does."""
    check_local(manifest, local)
    if local.api_key_file is not None:
        read_api_key(local.api_key_file)
    cache = model_cache()
    manifest = _with_models(manifest, cache)
    with tempfile.TemporaryDirectory(prefix="pipedec-") as run:
        pipeline = plan_processes(manifest, Path(run), cache, local)
        with held(pipeline.addresses):
            yield pipeline


def _with_models(manifest: PipeDecDeployment, cache: Path) -> PipeDecDeployment:
    from pipedec.model.shape import read_config
    from pipedec.models import resolve

    spec = manifest.spec
    with Fetching() as fetching:
        target = resolve(spec.model.uri, cache, fetching)
        draft = resolve(spec.draft.uri, cache, fetching) if spec.draft and spec.draft.uri else None
    split_layers(spec, read_config(target))
    if draft is not None:
        read_config(draft)
    return with_folders(manifest, target, draft)


def _greeting(pipeline: LocalPipeline, live_page: bool, api_key_file: Path | None) -> str:
    body = json.dumps(
        {
            "model": pipeline.served_name,
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            "stream": True,
        }
    )
    key = f' \\\n    -H "Authorization: Bearer $(cat {api_key_file})"' if api_key_file else ""
    option = f" --api-key-file {api_key_file}" if api_key_file else ""
    watch = f"Watch it: {pipeline.url}/ in a browser, or `pipedec top {pipeline.url}{option}`\n\n" if live_page else ""
    stages = len(pipeline.programs) - 1
    return (
        f"\n{pipeline.served_name} is served at {pipeline.url}/v1 by {counted(stages, 'stage')}. Try:\n\n"
        f"  curl -N {pipeline.url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n    -d '{body}'\n\n"
        f"  pipedec generate --url {pipeline.url}{option} 'Why is the sky blue?'\n\n{watch}Ctrl-C ends it.\n"
    )
