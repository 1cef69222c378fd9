"""Seeded faults, one after the other, each until the pipeline works again."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import psutil

from benchmarks.faults.load import Load
from benchmarks.faults.pipeline import Pipeline

KINDS = ("stage", "draft-model", "link", "stop", "hang")
RECOVERY_LIMIT = 600.0  # seconds until a pipeline counts as lost
POLL = 0.1
OVERLAP_SECONDS = 2.0  # between the first and the last of several faults at once
TOKENS_AGAIN = 5  # pieces of text, after which it works again


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `seconds`: the longest time that no client got anything, from when it was made until it was over."""

    kind: str
    what: str
    seconds: float


class NotRecovered(Exception):
    """The pipeline did not come back."""


@dataclass(slots=True)
class Injector:
    """Makes faults in a pipeline under load."""

    pipeline: Pipeline
    client: httpx.AsyncClient
    load: Load
    rng: random.Random
    faults: list[Fault] = field(default_factory=list)
    _chosen: set[str] = field(default_factory=set)

    async def run(self, kinds: Sequence[str], until: float, overlap: int = 1) -> None:
        """Faults of all kinds in turn, in a seeded order, a few seconds apart; `overlap` different ones at
        about the same time. Raises `NotRecovered`."""
        pending: list[str] = []
        while time.monotonic() < until:
            if len(pending) < overlap:
                pending = self.rng.sample(list(kinds), len(kinds))
            await asyncio.sleep(self.rng.uniform(0.5, 3.0))
            await self._make([pending.pop() for _ in range(overlap)])

    async def _make(self, kinds: Sequence[str]) -> None:
        start, name = time.monotonic(), "+".join(sorted(kinds))
        pauses = [0.0, *(self.rng.uniform(0.0, OVERLAP_SECONDS) for _ in kinds[1:])]
        try:
            async with asyncio.timeout(RECOVERY_LIMIT):
                what = await asyncio.gather(*map(self._make_one, kinds, pauses))
                await self._until_it_works()
        except TimeoutError as error:
            raise NotRecovered(f"not within {RECOVERY_LIMIT:.0f} s after a fault of kind {name}") from error
        times = [start, *(t for t in self.load.token_times if t > start)]
        seconds = max(later - earlier for earlier, later in pairwise(times))
        self.faults.append(Fault(name, ", ".join(what), seconds))

    async def _make_one(self, kind: str, pause: float) -> str:
        makers: dict[str, Callable[[], Coroutine[None, None, str]]] = {
            "stage": self._kill_stage,
            "draft-model": self._fail_draft_model,
            "link": self._break_link,
            "stop": self._stop_stage,
            "hang": self._hang_stage,
        }
        await asyncio.sleep(pause)
        return await makers[kind]()

    async def _until_it_works(self) -> None:
        """The pipeline says that it is ready, and clients are being told things."""
        await asyncio.sleep(0.5)  # what was on the way to a client when the fault was made says nothing
        told = len(self.load.token_times)
        while not (len(self.load.token_times) > told + TOKENS_AGAIN and await self._is_ready()):
            await asyncio.sleep(POLL)

    async def _is_ready(self) -> bool:
        try:
            return await self.pipeline.ready(self.client)
        except httpx.HTTPError:
            return False

    @contextmanager
    def _any_stage(self) -> Iterator[tuple[str, psutil.Process]]:
        """A stage that runs, and that no other fault has chosen at this time."""
        processes = self.pipeline.processes()
        name = self.rng.choice([name for name in processes if name != "draft" and name not in self._chosen])
        self._chosen.add(name)
        try:
            yield name, processes[name]
        finally:
            self._chosen.remove(name)

    async def _kill_stage(self) -> str:
        with self._any_stage() as (name, process):
            process.send_signal(signal.SIGKILL)
            await self._until_replaced(name, process.pid)
            return f"kill -9 of {name}"

    async def _until_replaced(self, name: str, pid: int) -> None:
        while (process := self.pipeline.processes().get(name)) is None or process.pid == pid:
            await asyncio.sleep(POLL)

    async def _stop_stage(self) -> str:
        seconds = self.rng.uniform(0.2, 3.0)
        with self._any_stage() as (name, process):
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            process.send_signal(signal.SIGCONT)
            return f"{name} stopped for {seconds:.1f} s"

    async def _hang_stage(self) -> str:
        """It is never told to go on: somebody must notice."""
        with self._any_stage() as (name, process):
            process.send_signal(signal.SIGSTOP)
            await self._until_replaced(name, process.pid)
            return f"{name} hung until it was replaced"

    async def _break_link(self) -> str:
        proxy, how = self.rng.choice(self.pipeline.proxies), self.rng.choice(("cut", "delay", "duplicate"))
        if how == "cut":
            proxy.cut()
        elif how == "duplicate":
            await proxy.duplicate()
        else:
            proxy.delay = self.rng.uniform(0.05, 0.5)
            await asyncio.sleep(self.rng.uniform(1.0, 3.0))
            proxy.delay = 0.0
        return f"{how} of link {proxy.name}"

    async def _fail_draft_model(self) -> str:
        how = self.rng.choice(("fail", "slow"))
        async with self._switched(how):
            await self._until_degraded(1.0)
        await self._until_degraded(0.0)
        return f"draft model: {how}"

    @asynccontextmanager
    async def _switched(self, name: str) -> AsyncIterator[None]:
        switch = self.pipeline.switches / name
        switch.touch()
        try:
            yield
        finally:
            switch.unlink()

    async def _until_degraded(self, wanted: float) -> None:
        while await self.pipeline.metric(self.client, "pipedec_head_degraded") != wanted:
            await asyncio.sleep(POLL)
