"""All sequences of one HTTP request, generated side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from draft_service.api.admission import Admission
from draft_service.api.transcript import Delta, Transcript
from draft_service.generation import Engine, GenerationRequest, RequestStatistics
from draft_service.text import Tokenizer
from pipedec.metrics.requests import RequestMetrics

Emit = Callable[[Delta], Awaitable[None]]


class Run:
    """One run of the admitted sequences; counts what they cost."""

    def __init__(self, admission: Admission, engine: Engine, tokenizer: Tokenizer, metrics: RequestMetrics) -> None:
        self._engine, self._tokenizer, self._metrics = engine, tokenizer, metrics
        self._sequences, self._stops = admission.sequences, admission.stops
        self.num_prompt_tokens = admission.num_prompt_tokens
        self.num_generated_tokens = 0
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
            sum(each.hits for each in told), sum(each.misses for each in told), sum(each.steps for each in told)
        )

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
        transcript = Transcript(index, self._tokenizer, self._stops, sequence.sampling.min_tokens)
        delta = Delta(index, "")
        try:
            async with aclosing(self._engine.generate(sequence)) as events:
                async for event in events:
                    statistics = event.statistics or RequestStatistics()
                    record.token(statistics.admitted)
                    self.num_generated_tokens += 1
                    if event.statistics is not None:
                        self._statistics[index] = event.statistics
                    if delta := transcript.push(event):
                        await emit(delta)
                    if delta.finish:
                        break
            if delta.finish is None:
                raise RuntimeError("the engine ended a sequence without a reason")
        except asyncio.CancelledError:
            record.finish("abort")
            raise
        except Exception:
            record.finish("error")
            raise
        record.finish(delta.finish)
