"""`pipedec generate`: one request, its text as it comes, and how fast it came."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from pipedec.api_key import read_api_key
from pipedec.cli.client import Json, served_model, stream
from pipedec.cli.local import Local, with_policy
from pipedec.cli.serve import serve
from pipedec.cli.terminal import explained, notes
from pipedec.cli.up import ApiKeyFileOption, PolicyOption, local_pipeline
from pipedec.errors import PipeDecError, RequestError
from pipedec.spec import load_manifest
from pipedec.words import counted

DEFAULT_URL = "http://127.0.0.1:8000"
RAW_TOKENS = 256  # of a text that is continued: it may have no end, where an answer has one


@explained
def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model; - reads it from stdin.")],
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Run this manifest for this one request.", metavar="FILE")
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"A running endpoint; else {DEFAULT_URL}.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help=f"Most tokens of the answer; else what the context has room for, {RAW_TOKENS} with --raw.", min=1
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.", min=0.0)] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    schema: Annotated[
        Path | None, typer.Option(help="The answer is JSON that follows this JSON schema.", metavar="FILE")
    ] = None,
    policy: PolicyOption = None,
    api_key_file: ApiKeyFileOption = None,
) -> None:
    """Generate one answer, streamed to stdout; what a model reasons before it, and what it took, are on stderr.

    The text is the same with every policy, which is easily seen:

        pipedec generate -f examples/smollm2.yaml --policy none "Why is the sky blue?"
    """
    if file is not None and url is not None:
        raise PipeDecError("--file and --url exclude each other; --url asks an endpoint that runs already")
    if policy is not None and file is None:
        raise PipeDecError("--policy needs --file; a running endpoint keeps the policy that it was started with")
    text = sys.stdin.read() if prompt == "-" else prompt
    body: Json = {"temperature": temperature}
    body |= {"prompt": text} if raw else {"messages": [{"role": "user", "content": text}]}
    if limit := max_tokens or (RAW_TOKENS if raw else None):
        body["max_tokens"] = limit
    if seed is not None:
        body["seed"] = seed
    if schema is not None:
        body["response_format"] = _form(schema)
    api_key = read_api_key(api_key_file) if api_key_file else None
    if file is None:
        _answer(url or DEFAULT_URL, body, api_key)
        return
    manifest = with_policy(load_manifest(file), policy)
    with local_pipeline(manifest, Local(port=0, api_key_file=api_key_file, log_level="WARNING")) as pipeline:

        async def ask() -> None:
            await asyncio.to_thread(_answer, pipeline.url, body, api_key)

        if not asyncio.run(serve(pipeline, ask, restart=False)):
            raise typer.Exit(130)


def _form(file: Path) -> Json:
    try:
        schema = json.loads(file.read_text())
    except OSError as error:
        raise PipeDecError(f"--schema: {error}") from error
    except ValueError as error:
        raise PipeDecError(f"--schema {file}: is not JSON: {error}") from error
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _answer(url: str, body: Json, api_key: str | None) -> None:
    base = url.rstrip("/").removesuffix("/v1")
    route = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    asked = body | {"model": served_model(base, api_key), "stream_options": {"include_usage": True}}
    start, first, cost, reasoned = time.monotonic(), None, Json(), False
    try:
        for chunk in stream(base, route, asked, api_key):
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta", {})
                if reasoning := delta.get("reasoning_content"):
                    first = first or time.monotonic() - start
                    notes.out(reasoning, end="", style="dim", highlight=False)
                    reasoned = True
                if text := choice.get("text") or delta.get("content"):
                    first = first or time.monotonic() - start
                    if reasoned:
                        notes.print("\n")
                        reasoned = False
                    print(text, end="", flush=True)
            if chunk.get("usage"):
                cost = chunk
    except RequestError as error:
        if error.code != "context_length_exceeded" or "max_tokens" not in body:
            raise
        raise PipeDecError(f"{error}; ask for fewer with --max-tokens") from error
    print(flush=True)
    notes.print(_summary(cost, time.monotonic() - start, first or 0.0), style="dim")


def _summary(cost: Json, seconds: float, first: float) -> str:
    if not cost:
        return f"{seconds:.1f} s"
    tokens = cost["usage"]["completion_tokens"]
    rate = f"{counted(tokens, 'token')} in {seconds:.1f} s ({tokens / seconds:.1f} tokens/s)"
    summary = f"{rate}, the first after {first:.1f} s"
    if speculation := cost.get("pipedec"):
        summary += f"; hit rate {speculation['hit_rate']:.0%}, {speculation['tokens_per_step']:.2f} tokens per step"
    return summary
