"""Faults under load: nothing may be lost, and nothing may be said that would not have been said without them.

    python -m benchmarks.faults --minutes 10 --stages 4 --clients 8 --kill stage,draft-model,link,stop,hang --seed 1
    python -m benchmarks.faults --minutes 10 --overlap 2        two faults at a time, one within the other's recovery
    python -m benchmarks.faults --minutes 20 --kill none        a soak: is the last quarter like the first?

Starts a pipeline of real processes on this machine (Linux), asks every question once undisturbed, then keeps asking
while faults are made: kill -9 of a stage; a draft model that fails or does not answer; connections cut, delayed and
doubled by a relay in front of each port; SIGSTOP and SIGCONT; SIGSTOP for good. The draft process itself is spared:
it holds the clients' connections. Exits with 1 if a request failed, a text differs, or a KV slot leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.faults.inject import KINDS, Injector, NotRecovered
from benchmarks.faults.load import TIMEOUT, Load, questions
from benchmarks.faults.pipeline import Pipeline, troubled
from benchmarks.faults.report import Mark, Memory, periods, report
from pipedec.cli.local import Local
from pipedec.cli.serve import serve
from pipedec.cli.up import local_pipeline
from pipedec.errors import PipeDecError
from pipedec.spec import PipeDecDeployment, parse_manifest
from tests.tiny import tiny_model

MODEL = "under-test"
QUESTIONS = 24
MEMORY_POLL = 1.0  # seconds


def manifest(model: str, stages: int, clients: int, policy: str) -> PipeDecDeployment:
    """A pipeline with room for all clients, whose draft is the target's first layers."""
    return parse_manifest(
        {
            "apiVersion": "pipedec.dev/v1alpha1",
            "kind": "PipeDecDeployment",
            "metadata": {"name": MODEL},
            "spec": {
                "model": {"uri": model, "dtype": "float32"},
                "draft": {"targetLayers": max(1, stages // 2)},
                "pipeline": {"stages": stages},
                "speculation": {"policy": policy, "width": 8, "children": 4},
                "serving": {"maxSequences": clients, "maxContext": 512, "threads": 1, "requestTimeoutSeconds": 900},
            },
        }
    )


class Watch:
    """Memory of every process of a pipeline, from when each is at work to the end."""

    def __init__(self, pipeline: Pipeline, client: httpx.AsyncClient) -> None:
        self._pipeline, self._client = pipeline, client
        self._first: dict[tuple[str, int], int] = {}

    async def run(self) -> None:
        """Look at every process once it has been part of a ready pipeline for a while."""
        while True:
            await asyncio.sleep(MEMORY_POLL)
            try:
                if await self._pipeline.ready(self._client):
                    self._look()
            except (httpx.HTTPError, psutil.Error):
                continue

    def _look(self) -> None:
        for name, process in self._pipeline.processes().items():
            if time.time() - process.create_time() > 30:
                self._first.setdefault((name, process.pid), process.memory_info().rss)

    def mark(self) -> Mark:
        """How all processes stand now."""
        processes = self._pipeline.processes().values()
        times = [process.cpu_times() for process in processes]
        resident = sum(process.memory_info().rss for process in processes)
        return Mark(time.monotonic(), sum(each.user + each.system for each in times), resident)

    def report(self) -> list[Memory]:
        return [
            Memory(name, process.pid, self._first.get((name, process.pid), rss), rss)
            for name, process in self._pipeline.processes().items()
            for rss in (process.memory_info().rss,)
        ]


async def measure(pipeline: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    """Load and faults on a pipeline that is ready."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=pipeline.url, timeout=TIMEOUT, limits=limits, trust_env=False) as client:
        load = Load(client, questions(MODEL, QUESTIONS, options.seed, options.max_tokens))
        await load.learn(options.clients)
        start = time.monotonic()
        watch = Watch(pipeline, client)
        watching = asyncio.create_task(watch.run())
        running = asyncio.create_task(load.run(options.clients, options.seed))
        injector = Injector(pipeline, client, load, random.Random(options.seed))
        marks = [watch.mark()]
        if options.kill:
            await injector.run(options.kill, start + 60 * options.minutes, options.overlap)
        else:
            for _ in range(4):
                await asyncio.sleep(60 * options.minutes / 4)
                marks.append(watch.mark())
        load.stopping = True
        await running
        watching.cancel()
        leaked = await _left(pipeline, client)
        result = report(load, injector.faults, leaked, watch.report())
        result["epochs_lost"] = int(await pipeline.metric(client, "pipedec_head_epochs_lost_total"))
        if not options.kill:
            result["quarters"] = periods(load, marks)
        return result


async def _left(pipeline: Pipeline, client: httpx.AsyncClient) -> int:
    """KV slots in use though nothing runs; the head hears of the end of a request a moment after its client does."""
    for _ in range(50):
        slots = int(await pipeline.metric(client, "pipedec_head_kv_slots_used"))
        if slots == 0:
            break
        await asyncio.sleep(0.1)
    return slots


def run(options: argparse.Namespace) -> dict[str, Any]:
    """A whole run: start, measure, end."""
    results: list[dict[str, Any]] = []

    async def work(pipeline: Pipeline) -> None:
        results.append(await measure(pipeline, options))

    async def all_of_it(model: str, switches: Path) -> None:
        wanted = manifest(model, options.stages, options.clients, options.policy)
        with local_pipeline(wanted, Local(port=0, devices=("cpu",))) as plan:
            async with troubled(plan, switches) as pipeline:
                await serve(pipeline.local, lambda: work(pipeline), verbose=options.verbose)

    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            layers = max(4, options.stages)
            model = f"file://{tiny_model(Path(folder) / 'model', layers=layers, seed=options.seed)}"
        asyncio.run(all_of_it(model, Path(folder)))
    if not results:
        raise SystemExit("interrupted")
    return results[0]


def _kinds(text: str) -> tuple[str, ...]:
    kinds = () if text == "none" else tuple(text.split(","))
    if unknown := set(kinds) - set(KINDS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(KINDS)}, or none")
    return kinds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5, help="of faults (default 5); the last one is waited for")
    parser.add_argument("--stages", type=int, default=4, help="default 4")
    parser.add_argument("--clients", type=int, default=8, help="that ask all the time (default 8)")
    parser.add_argument("--kill", type=_kinds, default=KINDS, help=f"any of {','.join(KINDS)}, or none (default all)")
    parser.add_argument("--overlap", type=int, default=1, help="faults of different kinds at once (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of questions and faults (default 0)")
    parser.add_argument("--model", help="URI of the target (default: a tiny random one)")
    parser.add_argument("--policy", default="adaptive", help="default adaptive")
    parser.add_argument("--max-tokens", type=int, default=240, help="of the longest answer (default 240)")
    parser.add_argument("--verbose", action="store_true", help="all log lines of all processes, on stderr")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    if options.kill and not 1 <= options.overlap <= len(options.kill):
        parser.error(f"--overlap must be from 1 to {len(options.kill)}, as many as there are kinds")
    try:
        result = run(options)
    except (PipeDecError, NotRecovered) as error:
        raise SystemExit(f"error: {error}") from error
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 1 if result["failed"] or result["different"] or result["leaked_slots"] else 0


if __name__ == "__main__":
    sys.exit(main())
