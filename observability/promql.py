"""PromQL expressions out of parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scope:
    """Which series an expression is about: label matchers, the window of rates, the labels that sums keep."""

    where: str
    window: str
    by: str = ""

    def of(self, metric: str, where: str = "") -> str:
        """The series of a metric, of those also the ones that `where` matches."""
        matchers = ", ".join(part for part in (self.where, where) if part)
        return f"{metric}{{{matchers}}}" if matchers else metric

    def sum(self, vector: str, by: str = "", operator: str = "sum") -> str:
        """An aggregation that keeps the scope's labels, and those of `by`."""
        kept = ", ".join(part for part in (self.by, by) if part)
        return f"{operator} by ({kept}) ({vector})" if kept else f"{operator}({vector})"

    def rate(self, counter: str, where: str = "", by: str = "") -> str:
        """How fast counters grow, per second."""
        return self.sum(f"rate({self.of(counter, where)}[{self.window}])", by)

    def increase(self, counter: str, where: str = "", by: str = "") -> str:
        """By how much counters grew in the window."""
        return self.sum(f"increase({self.of(counter, where)}[{self.window}])", by)

    def quantile(self, quantile: float, histogram: str, where: str = "", by: str = "") -> str:
        """A quantile of what a histogram observed in the window; `histogram` without its suffix."""
        buckets = self.rate(f"{histogram}_bucket", where, f"{by}, le" if by else "le")
        return f"histogram_quantile({quantile:g}, {buckets})"

    def mean(self, histogram: str, where: str = "", by: str = "") -> str:
        """The mean of what a histogram or a summary observed in the window."""
        return share(self.rate(f"{histogram}_sum", where, by), self.rate(f"{histogram}_count", where, by))


def share(part: str, whole: str) -> str:
    """One vector divided by another of the same labels; nothing where there is nothing to divide by."""
    return f"{part} / ({whole} > 0)"
