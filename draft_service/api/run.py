"""All sequences of one HTTP request, generated side by side."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from draft_service.api.admission import Admission
from draft_service.api.transcript import Delta, Transcript
from draft_service.generation import Engine, GenerationRequest, RequestStatistics
from draft_service.text import Tokenizer
from draft_service.tracing import Ended, untraced
from pipedec.errors import PipeDecError, UnavailableError
from pipedec.logs import fields
from pipedec.metrics.declared.requests import FinishedReason
from pipedec.metrics.requests import RequestMetrics, RequestRecord

Emit = Callable[[Delta], Awaitable[None]]

_log = logging.getLogger(__name__)


class Run:
    """One run of the admitted sequences; counts what they cost. Logs call them by `id`; `ended` is told of each."""

    def __init__(
        self,
        id: str,
        admission: Admission,
        engine: Engine,
        tokenizer: Tokenizer,
        metrics: RequestMetrics,
        ended: Ended = untraced,
    ) -> None:
        self._id, self._engine, self._tokenizer, self._metrics = id, engine, tokenizer, metrics
        self._ended = ended
        self._sequences, self._stops, self._continues = admission.sequences, admission.stops, admission.continues
        self._scanner, self._reasoning = admission.scanner, admission.reasoning
        self.num_prompt_tokens = admission.num_prompt_tokens
        self.num_generated_tokens = self.num_reasoning_tokens = 0
        self._statistics: dict[int, RequestStatistics] = {}

    @property
    def num_choices(self) -> int:
        return len(self._sequences)

    @property
    def statistics(self) -> RequestStatistics | None:
        """Sums over the sequences; None unless the engine told of each."""
        if len(self._statistics) < self.num_choices:
            return None
        told = self._statistics.values()
        return RequestStatistics(
            hits=sum(each.hits for each in told),
            misses=sum(each.misses for each in told),
            steps=sum(each.steps for each in told),
        )

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens, each prompt counted once, that were computed already before any of its choices was."""
        reused: dict[tuple[int, ...], int] = {}
        for index, sequence in enumerate(self._sequences):
            told = self._statistics[index].reused if index in self._statistics else 0
            reused[sequence.prompt] = min(told, reused.get(sequence.prompt, told))
        return sum(reused.values())

    async def drive(self, emit: Emit) -> None:
        """Generate all sequences, with every delta to `emit`. The first failure cancels the others and is raised."""
        try:
            async with asyncio.TaskGroup() as group:
                for index, sequence in enumerate(self._sequences):
                    group.create_task(self._generate(index, sequence, emit))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _generate(self, index: int, sequence: GenerationRequest, emit: Emit) -> None:
        record = self._metrics.begin(len(sequence.prompt))
        reason: FinishedReason = "error"
        failure: Exception | None = None
        try:
            reason = await self._stream(index, sequence, emit, record)
        except asyncio.CancelledError:
            reason = "abort"
            raise
        except Exception as error:
            failure = error
            raise
        finally:
            if not _refused(failure):
                record.finish(reason)
            self._tell(index, record, reason, failure)

    async def _stream(
        self, index: int, sequence: GenerationRequest, emit: Emit, record: RequestRecord
    ) -> FinishedReason:
        before = sequence.prompt if self._continues else ()
        scanner = self._scanner() if self._scanner is not None else None
        reasoning = self._reasoning() if self._reasoning is not None else None
        transcript = Transcript(
            index, self._tokenizer, self._stops, sequence.sampling.min_tokens, before, scanner, reasoning
        )
        async with aclosing(self._engine.generate(replace(sequence, id=self._id))) as events:
            async for event in events:
                statistics = event.statistics or RequestStatistics()
                if record.token(statistics.admitted):
                    _log.info("request first token", extra=fields(**self._names(index), **record.told()))
                self.num_generated_tokens += 1
                if event.statistics is not None:
                    self._statistics[index] = event.statistics
                reasoned = transcript.num_reasoning_tokens
                delta = transcript.push(event)
                self.num_reasoning_tokens += transcript.num_reasoning_tokens - reasoned
                if delta:
                    await emit(delta)
                if delta.finish:
                    return event.finish or "stop"  # by a stop string
        raise RuntimeError("the engine ended a sequence without a reason")

    def _names(self, index: int) -> dict[str, object]:
        return {"request": self._id, "choice": index if self.num_choices > 1 else None}

    def _tell(self, index: int, record: RequestRecord, reason: FinishedReason, failure: Exception | None) -> None:
        statistics = self._statistics.get(index, RequestStatistics())
        self._ended(record, reason, statistics)
        why = failure if isinstance(failure, PipeDecError) else failure and type(failure).__name__
        _log.log(
            logging.WARNING if reason == "error" and not _refused(failure) else logging.INFO,
            "request finished",
            extra=fields(
                **self._names(index),
                reason=reason,
                error=why,
                **record.told(),
                hit_rate=statistics.hit_rate,
                steps=statistics.steps,
                cached_tokens=statistics.reused,
            ),
        )


def _refused(failure: Exception | None) -> bool:
    """Whether the queue was full: nothing has gone wrong, so it counts neither as an error nor as finished."""
    return isinstance(failure, UnavailableError) and failure.status == 429
