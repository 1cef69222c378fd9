"""What is worth looking at, as PromQL; dashboards and alerts agree on these."""

from __future__ import annotations

from observability.promql import Scope, share

HITS, MISSES = "pipedec_head_hits_total", "pipedec_head_misses_total"
USEFUL, SECONDS = "pipedec_stage_useful_seconds_total", "pipedec_stage_seconds_total"


def decided(scope: Scope) -> str:
    """Tokens decided per second."""
    return f"({scope.rate(HITS)} + {scope.rate(MISSES)})"


def hit_rate(scope: Scope) -> str:
    """Share of decided tokens that were in the pipeline already."""
    return share(scope.rate(HITS), decided(scope))


def tokens_per_step(scope: Scope) -> str:
    """Tokens that a batch decided of a request that it carried rows of."""
    return share(decided(scope), scope.rate("pipedec_head_sequence_steps_total"))


def utilization(scope: Scope, by: str = "") -> str:
    """Share of the stages' time that went into rows which became tokens."""
    return scope.sum(f"rate({scope.of(USEFUL)}[{scope.window}])", by, operator="avg")


def time_spent(scope: Scope, state: str, by: str = "") -> str:
    """Share of the stages' time in a state."""
    where = f'state="{state}"'
    return scope.sum(f"rate({scope.of(SECONDS, where)}[{scope.window}])", by, operator="avg")


def wasted_rows(scope: Scope, by: str = "") -> str:
    """Share of the rows that stages computed which became nothing."""
    useful, computed = (scope.rate(f"pipedec_stage_{rows}_total", by=by) for rows in ("useful_rows", "rows"))
    return f"1 - {share(useful, computed)}"


def inter_token_latency(scope: Scope) -> str:
    """Mean time between two tokens of a request."""
    return scope.mean("pipedec_inter_token_latency_seconds")


def speed_up(scope: Scope) -> str:
    """How many times as fast a request's tokens come as plain pipeline parallelism alone could give them."""
    plain = scope.sum(scope.of("pipedec_head_plain_token_seconds"), operator="avg")
    return share(plain, inter_token_latency(scope))


def failed_requests(scope: Scope) -> str:
    """Share of finished requests that the service failed."""
    finished = "pipedec_request_success_total"
    return share(scope.rate(finished, 'finished_reason="error"'), scope.rate(finished))


def malformed(scope: Scope) -> str:
    """Messages dropped that no peer in its senses would have sent."""
    return _increases(
        scope,
        scope.of("pipedec_stage_dropped_total", 'reason=~"malformed|impossible"'),
        scope.of("pipedec_head_malformed_messages_total"),
    )


def strangers(scope: Scope) -> str:
    """Connections without the pipeline's key."""
    names = (f"pipedec_{side}_unauthenticated_connections_total" for side in ("stage", "head"))
    return _increases(scope, *map(scope.of, names))


def _increases(scope: Scope, *counters: str) -> str:
    """By how much several counters grew together. Each is of other pods, so that none hides another."""
    return scope.sum(" or ".join(f"increase({counter}[{scope.window}])" for counter in counters))
