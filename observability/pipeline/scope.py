"""What the dashboard is about: the replicas that are chosen of the pipeline that is chosen. And the units of it."""

from __future__ import annotations

from collections.abc import Iterator

from observability.panels import Query
from observability.promql import Scope

HERE = Scope('namespace="$namespace", pipeline="$pipeline", replica=~"$replica"', "$__rate_interval")

TOKENS_PER_SECOND, ROWS_PER_SECOND = "suffix: tokens/s", "suffix: rows/s"
TIMES, TOKENS, ROWS, NODES = "suffix:x", "suffix: tokens", "suffix: rows", "suffix: nodes"
REQUESTS, BATCHES, EPOCHS = "suffix: requests", "suffix: batches", "suffix: epochs"
MESSAGES, CONNECTIONS, CORES = "suffix: messages", "suffix: connections", "suffix: cores"

STAGE = "stage {{stage}}"


def quantiles(histogram: str) -> Iterator[Query]:
    """The median, and what one in twenty and one in a hundred exceed."""
    for quantile in (0.5, 0.95, 0.99):
        yield Query(HERE.quantile(quantile, histogram), f"p{100 * quantile:g}")
