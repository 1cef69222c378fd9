"""Hostile messages while honest clients ask, and what became of both."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.faults.load import TIMEOUT, Load, questions
from benchmarks.hostile.insiders import Insider, connected, send_huge
from benchmarks.hostile.strangers import http, raw_bytes, with_wrong_keys, without_keys
from benchmarks.up import Target, Up
from pipedec.wire.keys import Keys, load_keys

MODEL, HIDDEN = "under-test", 32  # of the pipeline that `resource` describes
MIB = 2**20
COUNTED_SECONDS = 60.0  # until what was sent must have been counted: a stage counts when it beats
_COUNTERS = {
    "malformed": ("pipedec_head_malformed_messages_total", 'pipedec_stage_dropped_total{reason="malformed"}'),
    "stale": ("pipedec_head_stale_verdicts_total", 'pipedec_stage_dropped_total{reason="stale"}'),
    "refused": ("pipedec_head_refused_registrations_total",),
    "without the key": (
        "pipedec_head_unauthenticated_connections_total",
        "pipedec_stage_unauthenticated_connections_total",
    ),
    "epochs lost": ("pipedec_head_epochs_lost_total",),
}


def resource(model: Path, stages: int, **serving: int) -> dict[str, Any]:
    """The manifest of a small pipeline."""
    return {
        "apiVersion": "pipedec.dev/v1alpha1",
        "kind": "PipeDecDeployment",
        "metadata": {"name": MODEL},
        "spec": {
            "model": {"uri": f"file://{model}", "dtype": "float32"},
            "draft": {"targetLayers": 2},
            "pipeline": {"stages": stages},
            "speculation": {"width": 8, "children": 4},
            "serving": {"maxSequences": 8, "maxContext": 256, "threads": 1, **serving},
        },
    }


@dataclass(slots=True)
class Attack:
    """Sends messages of every sort to every port, and counts them by sort."""

    up: Up
    rng: random.Random
    keys: Keys = field(init=False)
    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    """What must have been counted at least."""

    def __post_init__(self) -> None:
        self.keys = load_keys(self.up.keys_dir)

    def run(self, messages: int) -> None:
        """Blocking. Raises `zmq.Again` if a port takes nothing any more."""
        targets = self.up.targets()
        with ExitStack() as stack:
            insiders = {
                target: stack.enter_context(connected(target, self.keys, 4 * HIDDEN))
                for target in targets
                if target.role in ("control", "verdicts", "data")
            }
            for number in range(messages):
                target = targets[number % len(targets)]
                self.sent[self._send_one(target, insiders.get(target))] += 1
        for insider in insiders.values():
            self.expected.update({fate: count for fate, count in insider.sent.items() if fate != "ignored"})

    def _send_one(self, target: Target, insider: Insider | None) -> str:
        chance = self.rng.random()
        if insider is None and chance < 0.7:
            self.statuses[f"{target.role} {http(target, self.rng)}"] += 1
            return "http"
        if insider is None or chance < 0.4:
            raw_bytes(target, self.rng)
            return "raw bytes"
        if chance < 0.45:
            without_keys(target, self.rng)
            return "no key"
        if chance < 0.5:
            with_wrong_keys(target, self.rng, self.keys)
            self.expected["without the key"] += 1
            return "wrong key"
        if chance < 0.51:
            send_huge(target, self.keys, self.rng)
            return "huge"
        insider.send(self.rng)
        return "with the key"


async def counted(up: Up, client: httpx.AsyncClient) -> Counter[str]:
    """What all processes together have counted so far."""
    texts = []
    for target in up.targets():
        if target.role in ("http", "health"):
            texts.append((await client.get(f"http://127.0.0.1:{target.port}/metrics")).text)
    values: Counter[str] = Counter()
    for line in "\n".join(texts).splitlines():
        if found := re.fullmatch(r"(pipedec_\w+)\{(.*)\} (\S+)", line):
            reason = re.search(r'reason="\w+"', found[2])
            name = f"{found[1]}{{{reason[0]}}}" if reason else found[1]
            values.update({key: int(float(found[3])) for key, names in _COUNTERS.items() if name in names})
    return values


def resident(up: Up) -> dict[str, int]:
    """Bytes in memory, by process."""
    return {name: process.memory_info().rss for name, process in up.processes().items()}


async def trial(up: Up, messages: int, clients: int, seed: int) -> dict[str, Any]:
    """Attack while clients ask; the facts."""
    async with httpx.AsyncClient(base_url=up.url, timeout=TIMEOUT, trust_env=False) as client:
        load = Load(client, questions(MODEL, 12, seed, 60))
        await load.learn(clients)
        attack, before = Attack(up, random.Random(seed)), await counted(up, client)
        pids = {name: process.pid for name, process in up.processes().items()}
        running = asyncio.create_task(load.run(clients, seed))
        await asyncio.to_thread(attack.run, messages // 5)  # buffers and caches reach their size
        memory = resident(up)
        await asyncio.to_thread(attack.run, messages - messages // 5)
        load.stopping = True
        await running
        counts = await _counts(up, client, before, attack.expected)
        return {
            "messages": dict(attack.sent),
            "statuses": dict(attack.statuses),
            "requests": len(load.latencies) + len(load.failed),
            "failed": load.failed,
            "different": load.different,
            "restarted": [name for name, process in up.processes().items() if process.pid != pids[name]],
            "expected": dict(attack.expected),
            "counted": dict(counts),
            "growth_mib": {name: round((after - memory[name]) / MIB, 1) for name, after in resident(up).items()},
        }


async def _counts(
    up: Up, client: httpx.AsyncClient, before: Mapping[str, int], expected: Mapping[str, int]
) -> dict[str, int]:
    """What was counted since, once it is all that must be, or a while is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + COUNTED_SECONDS
    while True:
        now = await counted(up, client)
        since = {key: now[key] - before.get(key, 0) for key in _COUNTERS}
        if all(since[key] >= number for key, number in expected.items()) or loop.time() > deadline:
            return since
        await asyncio.sleep(0.5)


def harmless(result: dict[str, Any]) -> bool:
    """Whether nothing of what was sent had an effect, and all that can be counted was."""
    hurt = result["failed"] or result["different"] or result["restarted"] or result["counted"]["epochs lost"]
    errors = [status for status in result["statuses"] if status.startswith("http 5") and status != "http 503"]
    counted = all(result["counted"][key] >= number for key, number in result["expected"].items())
    return not hurt and not errors and counted
