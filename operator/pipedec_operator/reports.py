"""What draft pods say of their pipelines, asked over HTTP beside the passes, which read the last answers.

So a pod that does not answer delays nothing, and pods need no access to the API server. What is not known, because a
network policy or a mesh forbids the question, is left out of the status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

import aiohttp
from pydantic import ValidationError

from pipedec.spec.report import PATH, PipelineReport
from pipedec_operator import names
from pipedec_operator.names import Object
from pipedec_operator.pods import http_port

Key = TypeVar("Key")

SECONDS_BETWEEN = 10.0  # two questions to the same pod
TIMEOUT_SECONDS = 3.0
PATIENCE = 3  # answers in a row that may be missing until the last one counts as out of date
MAX_BYTES = 65536
AT_ONCE = 32

_log = logging.getLogger(__name__)


class Reports(Generic[Key]):
    """The last answer of every draft pod, by the pod's uid. Lives in an event loop."""

    def __init__(self, seconds_between: float = SECONDS_BETWEEN) -> None:
        self._seconds_between = seconds_between
        self._pods: dict[Key, dict[str, str]] = {}  # addresses by uid
        self._answers: dict[str, PipelineReport] = {}
        self._missed: dict[str, int] = {}
        self._asked: dict[str, float] = {}

    @property
    def answers(self) -> Mapping[str, PipelineReport]:
        return self._answers

    def keep(self, key: Key, pods: Iterable[Object]) -> None:
        """Ask these pods of a resource from now on, and none of its others."""
        wanted = {str(pod["metadata"]["uid"]): url for pod in pods if (url := address(pod))}
        for uid in self._pods.pop(key, {}).keys() - wanted.keys():
            for known in (self._answers, self._missed, self._asked):
                known.pop(uid, None)
        if wanted:
            self._pods[key] = wanted

    async def run(self, changed: Callable[[Key], None], tick_seconds: float = 1.0) -> None:
        """Asks until cancelled. `changed` is told the key of a resource when one of its pods says something new."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=AT_ONCE, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            while True:
                due = self._due()
                answered = await asyncio.gather(*(self._ask(session, uid, url) for _, uid, url in due))
                for (key, uid, _), answer in zip(due, answered, strict=True):
                    if self._note(key, uid, answer):
                        changed(key)
                await asyncio.sleep(tick_seconds)

    def _due(self) -> list[tuple[Key, str, str]]:
        now, due = asyncio.get_running_loop().time(), []
        for key, pods in self._pods.items():
            for uid, url in pods.items():
                if now >= self._asked.get(uid, 0.0) + self._seconds_between:
                    self._asked[uid] = now
                    due.append((key, uid, url))
        return due

    async def _ask(self, session: aiohttp.ClientSession, uid: str, url: str) -> PipelineReport | None:
        try:
            answer = await _get(session, url)
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            _log.debug("%s: %s", url, error)
            self._missed[uid] = self._missed.get(uid, 0) + 1
            return self._answers.get(uid) if self._missed[uid] < PATIENCE else None
        self._missed[uid] = 0
        return answer

    def _note(self, key: Key, uid: str, answer: PipelineReport | None) -> bool:
        """Keeps an answer; whether it is another than before, of a pod that is still kept."""
        if uid not in self._pods.get(key, {}) or answer == self._answers.get(uid):
            return False
        if answer is None:
            del self._answers[uid]
        else:
            self._answers[uid] = answer
        return True


async def _get(session: aiohttp.ClientSession, url: str) -> PipelineReport:
    async with session.get(url, allow_redirects=False, raise_for_status=True) as response:
        if response.status != 200 or not 0 < (response.content_length or 0) <= MAX_BYTES:
            raise aiohttp.ClientPayloadError(f"status {response.status}, {response.content_length} bytes")
        return PipelineReport.model_validate_json(await response.read())


def address(pod: Object) -> str | None:
    """Where a draft pod answers; None while it cannot, and for other pods."""
    status = pod.get("status", {})
    if pod["metadata"].get("labels", {}).get(names.ROLE) != names.DRAFT or status.get("phase") != "Running":
        return None
    host, port = status.get("podIP", ""), http_port(pod["spec"])
    if not host or port is None:
        return None
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"
