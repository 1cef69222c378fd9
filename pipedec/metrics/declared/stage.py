"""What a stage does: its time, its rows, what of both became tokens, its links, and what it had to drop."""

from __future__ import annotations

from typing import Literal

from pipedec.metrics.family import Catalogue

State = Literal["busy", "idle", "blocked", "unformed"]
STATES: tuple[State, ...] = ("busy", "idle", "blocked", "unformed")
DropReason = Literal["malformed", "impossible", "stale"]
DROP_REASONS: tuple[DropReason, ...] = ("malformed", "impossible", "stale")
ROWS = ("0", "1", "2", "4", "8", "16", "32", "64", "more")
STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

families = Catalogue(stage="index of the stage")

INFO = families.gauge(
    "pipedec_stage_info",
    "1",
    "1, labelled with what this stage holds: its layers, last included.",
    "count(pipedec_stage_info)",
    layers="one span per stage",
    dtype="one per pipeline",
    device="one per process",
)
FORMED = families.gauge(
    "pipedec_stage_formed", "bool", "1 while this stage is in an epoch.", "min(pipedec_stage_formed) == 0"
)
EPOCH = families.gauge(
    "pipedec_stage_epoch",
    "epoch",
    "Number of the epoch that this stage is in; 0: in none.",
    "count(count_values('epoch', pipedec_stage_epoch)) > 1",
)
FORMATIONS = families.counter(
    "pipedec_stage_formations_total", "epochs", "Epochs joined.", "increase(pipedec_stage_formations_total[10m]) > 3"
)
SECONDS = families.counter(
    "pipedec_stage_seconds_total",
    "seconds",
    "Time by what the stage did; busy: computing, idle: in an epoch and waiting for a batch, blocked: handing a result "
    "on, unformed: in no epoch.",
    'sum by (stage) (rate(pipedec_stage_seconds_total{state="busy"}[1m]))',
    state=STATES,
)
USEFUL_SECONDS = families.counter(
    "pipedec_stage_useful_seconds_total",
    "seconds",
    "Time computing, the part of it that rows took which were committed later: a step's time is split evenly over its "
    "rows. As a share of all time it is the utilization of the pipeline.",
    "avg(rate(pipedec_stage_useful_seconds_total[1m]))",
)
STEPS = families.counter(
    "pipedec_stage_steps_total", "steps", "Steps computed.", "sum by (stage) (rate(pipedec_stage_steps_total[1m]))"
)
COMPUTED_ROWS = families.counter(
    "pipedec_stage_rows_total",
    "rows",
    "Rows computed.",
    "rate(pipedec_stage_rows_total[1m]) / (rate(pipedec_stage_steps_total[1m]) > 0)",
)
USEFUL_ROWS = families.counter(
    "pipedec_stage_useful_rows_total",
    "rows",
    "Rows computed that were committed: prompt tokens at once, others when the head says so. The last row or two of a "
    "request never are; all other rows computed were wasted.",
    "1 - rate(pipedec_stage_useful_rows_total[5m]) / (rate(pipedec_stage_rows_total[5m]) > 0)",
)
CANCELLED_ROWS = families.counter(
    "pipedec_stage_cancelled_rows_total",
    "rows",
    "Rows that were not computed here because they could not become tokens any more.",
    "sum by (stage) (rate(pipedec_stage_cancelled_rows_total[1m]))",
)
STEP_TIME = families.histogram(
    "pipedec_stage_step_seconds",
    "seconds",
    "Time to compute one step, by its rows: the least of these that is not below their number.",
    "histogram_quantile(0.99, sum by (stage, rows, le) (rate(pipedec_stage_step_seconds_bucket[5m])))",
    STEP_SECONDS,
    rows=ROWS,
)
RECEIVED_BYTES = families.counter(
    "pipedec_stage_received_bytes_total",
    "bytes",
    "Batches that came from the predecessor, in bytes.",
    "sum by (stage) (rate(pipedec_stage_received_bytes_total[1m]))",
)
SENT_BYTES = families.counter(
    "pipedec_stage_sent_bytes_total",
    "bytes",
    "What was handed to the successor, in bytes: batches, or from the last stage verdicts to the head.",
    "sum by (stage) (rate(pipedec_stage_sent_bytes_total[1m]))",
)
KV_SLOTS = families.gauge(
    "pipedec_stage_kv_slots",
    "slots",
    "KV slots that this stage can hold; an epoch has those of the least.",
    "min(pipedec_stage_kv_slots)",
)
UNAUTHENTICATED = families.counter(
    "pipedec_stage_unauthenticated_connections_total",
    "connections",
    "Connections to the data port without the pipeline's key.",
    "increase(pipedec_stage_unauthenticated_connections_total[5m]) > 0",
)
DROPPED = families.counter(
    "pipedec_stage_dropped_total",
    "messages",
    "Messages dropped; malformed: not decodable, impossible: contradicts the state, stale: another epoch.",
    "sum by (stage, reason) (increase(pipedec_stage_dropped_total[5m])) > 0",
    reason=DROP_REASONS,
)
