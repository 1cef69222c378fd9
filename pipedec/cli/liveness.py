"""What a kubelet does with liveness probes, for processes of this machine: what hangs is killed, to start again."""

from __future__ import annotations

import asyncio
import urllib.error
from collections.abc import Mapping

from pipedec.cli.client import direct
from pipedec.cli.terminal import notes
from pipedec.processes.supervisor import Supervisor

POLL_SECONDS, TIMEOUT_SECONDS, FAILURES = 2.0, 5.0, 3


async def kill_stuck(health: Mapping[str, str], supervisor: Supervisor) -> None:
    """Ask every program at its health address, for ever; who fails `FAILURES` times in a row is killed."""
    await asyncio.gather(*(_guard(name, url, supervisor) for name, url in health.items()))


async def _guard(name: str, url: str, supervisor: Supervisor) -> None:
    failures = 0
    while not supervisor.stopping:
        problem = await asyncio.to_thread(_problem, url)
        failures = failures + 1 if problem else 0
        if failures == FAILURES and not supervisor.stopping:
            notes.print(f"{name} hangs ({problem}); it is killed", style="yellow")
            supervisor.kill(name)
            failures = 0
        await asyncio.sleep(POLL_SECONDS)


def _problem(url: str) -> str:
    """Why the process at a health address counts as hung; empty when it does not, or when nobody listens there: what
    hangs still listens, what does not listen is only starting."""
    try:
        with direct.open(url, timeout=TIMEOUT_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode(errors="replace").strip()
    except OSError as error:
        refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
        return "" if refused else f"no answer: {error}"
