"""How much sooner does an answer begin, where the conversation so far need not be computed again?

    python -m benchmarks.first_token --turns 5 --stages 4 --json

SmolLM2 in two pipelines, one after the other: with the prefix cache and without it. Both are asked the same turns of
one conversation under long instructions, and must say the same. Nothing is simulated; the ratio is of times to the
first token, of a machine on which all stages share the processors.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import openai
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console
from rich.table import Table

from benchmarks.overhead import URI
from benchmarks.up import running
from pipedec.words import counted

INSTRUCTIONS = " ".join(
    f"Rule {number}: when somebody asks about topic {number}, say first what is known, then what is not."
    for number in range(40)
)
QUESTION = "And what about topic {number}?"


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer: its prompt's tokens, how many of them were reused, and the seconds until its first token."""

    prompt_tokens: int
    cached_tokens: int
    seconds: float
    text: str


def resource(stages: int, prefix_cache: bool) -> dict[str, object]:
    """The manifest, without a draft: the text alone predicts."""
    spec = {
        "model": {"uri": URI},
        "pipeline": {"stages": stages},
        "serving": {"maxContext": 4096, "maxSequences": 1, "prefixCache": prefix_cache},
    }
    kind = {"apiVersion": "pipedec.dev/v1alpha1", "kind": "PipeDecDeployment"}
    return {**kind, "metadata": {"name": "conversation"}, "spec": spec}


def converse(client: openai.OpenAI, model: str, turns: int, max_tokens: int) -> list[Turn]:
    """Ask turn after turn; each prompt holds all that was said before."""
    said: list[ChatCompletionMessageParam] = [{"role": "system", "content": INSTRUCTIONS}]
    told = []
    for number in range(turns):
        said.append({"role": "user", "content": QUESTION.format(number=number)})
        begin, first, text, usage = time.perf_counter(), 0.0, "", None
        stream = client.chat.completions.create(
            model=model,
            messages=said,
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - begin
                text += chunk.choices[0].delta.content
            usage = chunk.usage or usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        told.append(Turn(usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0, first, text))
        said.append({"role": "assistant", "content": text})
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_token",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=5, help="of the conversation (default 5)")
    parser.add_argument("--max-tokens", type=int, default=32, help="of an answer, at most (default 32)")
    parser.add_argument("--stages", type=int, default=4, help="default 4")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    runs: list[list[Turn]] = []
    for prefix_cache in (False, True):
        with (
            running(resource(options.stages, prefix_cache)) as up,
            openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", timeout=600) as client,
        ):
            runs.append(converse(client, "conversation", options.turns, options.max_tokens))
    pairs = list(zip(*runs, strict=True))
    if any(without.text != cached.text for without, cached in pairs):
        raise RuntimeError("the two pipelines said different things")
    rows = [
        {
            "turn": number,
            "prompt_tokens": cached.prompt_tokens,
            "cached_tokens": cached.cached_tokens,
            "without_ms": 1000 * without.seconds,
            "cached_ms": 1000 * cached.seconds,
            "ratio": without.seconds / cached.seconds,
        }
        for number, (without, cached) in enumerate(pairs, start=1)
    ]
    if options.json:
        print(json.dumps({"stages": options.stages, "turns": rows}))
        return 0
    table = Table(
        title=f"to the first token, {counted(options.stages, 'stage')}", title_justify="left", title_style="bold"
    )
    for heading in ("turn", "prompt tokens", "reused", "without ms", "with ms", "times as soon"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
