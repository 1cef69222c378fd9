"""What the head of a pipeline does and how it stands, for Prometheus; the head's own loop adds to plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from pipedec.metrics.declared import head as declared
from pipedec.metrics.distribution import Distribution
from pipedec.metrics.family import Family, Samples


@dataclass(slots=True)
class HeadCounts:
    """Totals since the process began; the head adds to them, whoever scrapes reads them."""

    hits: int = 0
    misses: int = 0
    accepted: list[int] = field(default_factory=lambda: [0] * len(declared.POSITIONS))  # hits, by levels ahead
    batches: int = 0
    sequence_steps: int = 0
    levels: int = 0
    prefill_rows: int = 0
    certain_rows: int = 0
    predicted_rows: int = 0
    wasted_rows: int = 0
    drafts: int = 0
    draft_rows: int = 0
    draft_failures: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    resumptions: int = 0
    given_up: int = 0
    epochs_lost: int = 0
    stale_verdicts: int = 0
    refused_registrations: int = 0
    tree_nodes: Distribution = field(default_factory=lambda: Distribution(declared.NODES))
    tree_depth: Distribution = field(default_factory=lambda: Distribution(declared.LEVELS))
    batch_rows: Distribution = field(default_factory=lambda: Distribution(declared.ROWS))
    round_trip: Distribution = field(default_factory=lambda: Distribution(declared.SECONDS))
    draft_seconds: Distribution = field(default_factory=lambda: Distribution(declared.SECONDS))

    def batch(self, prefilled: int, certain: int, predicted: int) -> None:
        """A batch of so many rows was composed."""
        self.batches += 1
        self.prefill_rows += prefilled
        self.certain_rows += certain
        self.predicted_rows += predicted
        self.batch_rows.add(prefilled + certain + predicted)

    def prompt(self, tokens: int, reused: int) -> None:
        """A prompt was read, of which so many tokens had been computed for others."""
        self.prefix_queries += tokens
        self.prefix_hits += reused

    def hit(self, ahead: int) -> None:
        """A token was decided whose row was in the pipeline; it was sent so many levels ahead of the cursor."""
        self.hits += 1
        self.accepted[min(ahead, len(self.accepted)) - 1] += 1


@dataclass(frozen=True, slots=True)
class HeadState:
    """How the head stands at one moment. `heard`: by stage, seconds since it was, infinite if never; `steps`: by stage,
    seconds of its steps of fewest rows, without the stages that have not said."""

    running: int
    waiting: int
    in_flight: int
    kv_slots: int
    kv_slots_used: int
    epoch: int
    epoch_live: bool
    degraded: bool
    malformed: int
    unauthenticated: int
    present: Sequence[bool]
    heard: Sequence[float]
    steps: Mapping[int, float]


class HeadMetrics(Collector):
    """Exports a head's counts and state as they are when Prometheus asks."""

    def __init__(
        self,
        registry: CollectorRegistry,
        model_name: str,
        policy: str,
        counts: HeadCounts,
        state: Callable[[], HeadState],
    ) -> None:
        self._model_name, self._policy, self._counts, self._state = model_name, policy, counts, state
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        samples = {**_of_counts(self._counts), **_of_state(self._state()), declared.INFO: [((self._policy,), 1.0)]}
        return (family.metric((self._model_name,), samples[family]) for family in declared.families)


def _of_counts(counts: HeadCounts) -> dict[Family, Samples]:
    totals: dict[Family, float | Distribution] = {
        declared.HITS: counts.hits,
        declared.MISSES: counts.misses,
        declared.BATCHES: counts.batches,
        declared.SEQUENCE_STEPS: counts.sequence_steps,
        declared.LEVELS_SENT: counts.levels,
        declared.PREFILL_ROWS: counts.prefill_rows,
        declared.CERTAIN_ROWS: counts.certain_rows,
        declared.PREDICTED_ROWS: counts.predicted_rows,
        declared.WASTED_ROWS: counts.wasted_rows,
        declared.NUM_DRAFTS: counts.drafts,
        declared.NUM_DRAFT_TOKENS: counts.predicted_rows,
        declared.NUM_ACCEPTED_TOKENS: counts.hits,
        declared.DRAFT_ROWS: counts.draft_rows,
        declared.DRAFT_FAILURES: counts.draft_failures,
        declared.PREFIX_QUERIES: counts.prefix_queries,
        declared.PREFIX_HITS: counts.prefix_hits,
        declared.NUM_PREEMPTIONS: counts.preemptions,
        declared.RESUMPTIONS: counts.resumptions,
        declared.GIVEN_UP: counts.given_up,
        declared.EPOCHS_LOST: counts.epochs_lost,
        declared.STALE_VERDICTS: counts.stale_verdicts,
        declared.REFUSED_REGISTRATIONS: counts.refused_registrations,
        declared.TREE_NODES: counts.tree_nodes,
        declared.TREE_DEPTH: counts.tree_depth,
        declared.BATCH_ROWS: counts.batch_rows,
        declared.ROUND_TRIP: counts.round_trip,
        declared.DRAFT_SECONDS: counts.draft_seconds,
    }
    samples: dict[Family, Samples] = {family: [((), total)] for family, total in totals.items()}
    positions = zip(declared.POSITIONS, counts.accepted, strict=True)
    return samples | {declared.NUM_ACCEPTED_TOKENS_PER_POS: [((position,), hits) for position, hits in positions]}


def _of_state(state: HeadState) -> dict[Family, Samples]:
    values = {
        declared.NUM_RUNNING: state.running,
        declared.NUM_WAITING: state.waiting,
        declared.IN_FLIGHT: state.in_flight,
        declared.KV_SLOTS: state.kv_slots,
        declared.KV_SLOTS_USED: state.kv_slots_used,
        declared.KV_USAGE: state.kv_slots_used / state.kv_slots,
        declared.STAGES: len(state.present),
        declared.EPOCH: state.epoch,
        declared.EPOCH_LIVE: state.epoch_live,
        declared.DEGRADED: state.degraded,
        declared.MALFORMED: state.malformed,
        declared.UNAUTHENTICATED: state.unauthenticated,
    }
    complete = len(state.steps) == len(state.present)
    samples: dict[Family, Samples] = {family: [((), value)] for family, value in values.items()}
    return samples | {
        declared.STAGE_PRESENT: [((str(stage),), present) for stage, present in enumerate(state.present)],
        declared.HEARTBEAT_AGE: [((str(stage),), seconds) for stage, seconds in enumerate(state.heard)],
        declared.STAGE_STEP: [((str(stage),), seconds) for stage, seconds in sorted(state.steps.items())],
        declared.PLAIN_TOKEN: [((), sum(state.steps.values()))] if complete else [],
    }
