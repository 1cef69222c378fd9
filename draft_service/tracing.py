"""Where a request's time went, as an OpenTelemetry trace: queue, prefill and decode under one span.

Off, and nothing of OpenTelemetry imported, unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or the one for traces) is set; what
else there is to choose (headers, sampler, resource, limits) is read by its SDK from its own variables. Spans are made
when a request is over, from the times that were taken anyway. Like logs, they hold no text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from draft_service.generation import RequestStatistics
from pipedec.config import traces_wanted
from pipedec.errors import ManifestError
from pipedec.metrics.declared.requests import FinishedReason
from pipedec.metrics.requests import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Ended = Callable[[RequestRecord, FinishedReason, RequestStatistics], None]


def untraced(record: RequestRecord, reason: FinishedReason, statistics: RequestStatistics) -> None:
    """A request is over, and nobody wants to know."""


class Tracer:
    """Traces of the requests to one model. `clock` is that of the records' times."""

    def __init__(self, provider: TracerProvider, model_name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracer = provider.get_tracer("pipedec")
        self._model_name, self._clock = model_name, clock

    @classmethod
    def open(cls, model_name: str) -> Tracer | None:
        """As the environment says; None when no traces are wanted. Raises `ManifestError` without the extra `otel`."""
        if not traces_wanted():
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            remedy = "Install pipedec[otel] into the image, or unset the variable"
            raise ManifestError("OTEL_EXPORTER_OTLP_ENDPOINT", "is set, but OpenTelemetry is absent", remedy) from error
        provider = TracerProvider(resource=Resource({"service.name": "pipedec"}).merge(OTELResourceDetector().detect()))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider, model_name)

    def begin(self, operation: str, request_id: str, headers: Mapping[str, str]) -> Ended:
        """A request arrived, perhaps within a trace of the client's: what to call when a sequence of it is over."""
        from opentelemetry import propagate, trace

        context = propagate.extract(headers)
        asked = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": self._model_name,
            "pipedec.request.id": request_id,
        }

        def ended(record: RequestRecord, reason: FinishedReason, statistics: RequestStatistics) -> None:
            now, clock = time.time_ns(), self._clock()

            def at(moment: float) -> int:
                return now - round((clock - moment) * 1e9)

            span = self._tracer.start_span(
                f"{operation} {self._model_name}",
                context,
                trace.SpanKind.SERVER,
                {**asked, **_attributes(record, reason, statistics)},
                start_time=at(record.arrival),
            )
            for part, begin, end in record.parts():
                child = self._tracer.start_span(part, trace.set_span_in_context(span), start_time=at(begin))
                child.end(at(end))
            if reason == "error":
                span.set_status(trace.StatusCode.ERROR)
            span.end(now)

        return ended


def _attributes(
    record: RequestRecord, reason: FinishedReason, statistics: RequestStatistics
) -> dict[str, str | int | float | tuple[str, ...]]:
    return {
        "gen_ai.response.finish_reasons": (reason,),
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_tokens,
        "pipedec.hit_rate": statistics.hit_rate,
        "pipedec.steps": statistics.steps,
    }
