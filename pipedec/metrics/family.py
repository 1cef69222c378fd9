"""What a metric is, said once: the services build their metrics from it, and docs/metrics.md is written from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from pipedec.metrics.distribution import Distribution

Kind = Literal["counter", "gauge", "histogram"]
Samples = Iterable[tuple[tuple[str, ...], float | Distribution]]  # values of labels, and what was measured


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One metric: `name` as it is scraped (a counter's ends in `_total`, a histogram's has no `_bucket`), what one of
    its values counts (`unit`), and a PromQL query that shows its use.

    `labels` maps each label to the values it can have, or to a sentence that says what bounds them.
    """

    name: str
    kind: Kind
    unit: str
    text: str
    query: str
    labels: Mapping[str, Sequence[str] | str] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    @property
    def stem(self) -> str:
        """The name as prometheus-client has it: without the suffix that it adds."""
        return self.name.removesuffix("_total")

    def counter(self, registry: CollectorRegistry) -> Counter:
        assert self.kind == "counter"
        return Counter(self.stem, self.text, tuple(self.labels), registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        assert self.kind == "gauge"
        return Gauge(self.name, self.text, tuple(self.labels), registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        assert self.kind == "histogram"
        return Histogram(self.name, self.text, tuple(self.labels), registry=registry, buckets=self.buckets)

    def metric(self, fixed: Sequence[str], samples: Samples) -> Metric:
        """The metric with these samples, for a collector. `fixed` are the values of the first labels in all of them."""
        if self.kind == "histogram":
            histogram = HistogramMetricFamily(self.name, self.text, labels=tuple(self.labels))
            for labels, value in samples:
                assert isinstance(value, Distribution)
                histogram.add_metric((*fixed, *labels), value.cumulative(), value.total)
            return histogram
        made = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        metric = made(self.stem, self.text, labels=tuple(self.labels))
        for labels, value in samples:
            assert not isinstance(value, Distribution)
            metric.add_metric((*fixed, *labels), float(value))
        return metric


class Catalogue:
    """The metrics of one concern, in the order of their declaration; all of them have `labels`, and may have more."""

    def __init__(self, **labels: Sequence[str] | str) -> None:
        self._labels = labels
        self._families: list[Family] = []

    def counter(self, name: str, unit: str, text: str, query: str, /, **labels: Sequence[str] | str) -> Family:
        return self._declare(Family(name, "counter", unit, text, query, {**self._labels, **labels}))

    def gauge(self, name: str, unit: str, text: str, query: str, /, **labels: Sequence[str] | str) -> Family:
        return self._declare(Family(name, "gauge", unit, text, query, {**self._labels, **labels}))

    def histogram(
        self, name: str, unit: str, text: str, query: str, buckets: Sequence[float], /, **labels: Sequence[str] | str
    ) -> Family:
        return self._declare(
            Family(name, "histogram", unit, text, query, {**self._labels, **labels}, tuple(map(float, buckets)))
        )

    def _declare(self, family: Family) -> Family:
        self._families.append(family)
        return family

    def __iter__(self) -> Iterator[Family]:
        return iter(self._families)
