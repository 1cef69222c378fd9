"""A real pipeline with emulated devices, and the time in which it answers over HTTP."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai

from benchmarks.comparison import Tuning
from benchmarks.recording import Prompt
from benchmarks.wallclock.scene import VARIABLE, Scene
from pipedec.cli.local import Local, LocalPipeline
from pipedec.cli.serve import serve
from pipedec.cli.up import local_pipeline
from pipedec.policy import PolicyName
from pipedec.spec import parse_manifest

NAME = "wallclock"


@dataclass(frozen=True, slots=True)
class Timed:
    """Tokens after each answer's first, and the seconds that they took."""

    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def manifest(model: str, stages: int, policy: PolicyName, tuning: Tuning) -> dict[str, Any]:
    """A pipeline for one request at a time. The draft's layer is loaded, and not used."""
    speculation: dict[str, Any] = {"policy": policy}
    if policy != "none":
        speculation["children"] = tuning.children
    if policy in ("pipedec", "static-tree"):
        speculation["width"] = tuning.width
    if policy == "static-tree":
        speculation["depth"] = tuning.depth
    return {
        "apiVersion": "pipedec.dev/v1alpha1",
        "kind": "PipeDecDeployment",
        "metadata": {"name": NAME},
        "spec": {
            "model": {"uri": model, "dtype": "float32"},
            "draft": {"targetLayers": 1},
            "speculation": speculation,
            "pipeline": {"stages": stages},
            "serving": {"maxSequences": 1, "threads": 1},
        },
    }


def measure(resource: dict[str, Any], scene: Scene, prompts: Sequence[Prompt], progress: Callable[[], None]) -> Timed:
    """Start the pipeline, have it answer the scene's prompts one after the other, and end it."""
    timed = Timed(0, 0.0)

    async def ask() -> None:
        nonlocal timed
        async with openai.AsyncOpenAI(base_url=f"{pipeline.url}/v1", api_key="none", timeout=3600) as client:
            for prompt, transcript in zip(prompts, scene.transcripts(), strict=True):
                answer = await _answer(client, prompt, len(transcript.answer))
                timed = Timed(timed.tokens + answer.tokens, timed.seconds + answer.seconds)
                progress()

    with local_pipeline(parse_manifest(resource), Local(port=0)) as planned, tempfile.TemporaryDirectory() as folder:
        scene.write(file := Path(folder) / "scene.json")
        pipeline = _emulated(planned, file)
        asyncio.run(serve(pipeline, ask, restart=False))
    return timed


def _emulated(pipeline: LocalPipeline, scene: Path) -> LocalPipeline:
    def program(name: str) -> tuple[str, ...]:
        return (sys.executable, "-m", f"benchmarks.wallclock.{'head' if name == 'draft' else 'stage'}")

    return replace(
        pipeline,
        programs=tuple(
            replace(old, command=program(old.name), environment={**old.environment, VARIABLE: str(scene)})
            for old in pipeline.programs
        ),
    )


async def _answer(client: openai.AsyncOpenAI, prompt: Prompt, tokens: int) -> Timed:
    stream = await client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": prompt.prompt}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    times, came = [], 0
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            times.append(time.perf_counter())
        elif chunk.usage is not None:
            came = chunk.usage.completion_tokens
    if came != tokens:
        raise AssertionError(f"{came} tokens came where the target says {tokens}: {prompt.prompt}")
    return Timed(came - 1, times[-1] - times[0])
