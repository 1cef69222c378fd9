"""The pipeline under test: processes of this machine, every link of theirs through a relay.

A process listens on 127.0.0.1 and says that it is at 127.0.0.2, where the relay listens on the same port. Linux alone
has the whole of 127/8 on its loopback.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from benchmarks.faults.proxy import Proxy
from benchmarks.up import services
from pipedec.cli.local import LocalPipeline
from pipedec.cli.ports import LOOPBACK, free_ports

RELAYS = "127.0.0.2"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline planned, and how to look at it, and how to trouble it, once it runs as children of this process."""

    local: LocalPipeline
    proxies: tuple[Proxy, ...]
    switches: Path
    """Folder of the draft model's switches; see `benchmarks.faults.head`."""

    @property
    def url(self) -> str:
        return self.local.url

    def processes(self) -> dict[str, psutil.Process]:
        """Its running processes, by name."""
        return services(psutil.Process())

    async def metric(self, client: httpx.AsyncClient, name: str) -> float:
        """A value that the draft process exports."""
        text = (await client.get(f"{self.url}/metrics")).text
        found = re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        if found is None:
            raise LookupError(f"no metric {name}")
        return float(found[1])

    async def ready(self, client: httpx.AsyncClient) -> bool:
        return (await client.get(f"{self.url}/ready")).status_code == httpx.codes.OK


@asynccontextmanager
async def troubled(plan: LocalPipeline, switches: Path) -> AsyncIterator[Pipeline]:
    """The same pipeline, its links through relays, its draft model with switches."""
    stages = len(plan.programs) - 1
    verdicts, *data = free_ports(1 + stages)
    draft, *others = plan.programs
    control = int(draft.environment["PIPEDEC_CONTROL_PORT"])
    advertised = {"PIPEDEC_ADVERTISE_HOST": RELAYS, "PYTHONPATH": os.getcwd()}
    head = replace(
        draft,
        command=(sys.executable, "-m", "benchmarks.faults.head", str(switches)),
        environment={**draft.environment, **advertised, "PIPEDEC_VERDICT_PORT": str(verdicts)},
    )
    programs = [head]
    for program, port in zip(others, data, strict=True):
        changes = {"PIPEDEC_DATA_PORT": str(port), "PIPEDEC_HEAD_ADDRESS": f"tcp://{RELAYS}:{control}"}
        programs.append(replace(program, environment={**program.environment, **advertised, **changes}))
    links = {"control": control, "verdicts": verdicts} | {f"data {stage}": port for stage, port in enumerate(data)}
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(Proxy(name, (RELAYS, port), (LOOPBACK, port)))
            for name, port in links.items()
        ]
        yield Pipeline(replace(plan, programs=tuple(programs)), tuple(proxies), switches)
