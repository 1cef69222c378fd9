"""Alerts of a pipeline, by replica: one that is down is worth a call though others serve."""

from __future__ import annotations

from observability import measures
from observability.promql import Scope
from observability.rules import Alert, label, value

REPLICA = "namespace, pipeline, replica"
LATELY = Scope("", "5m", by=REPLICA)
HALF_HOUR = Scope("", "30m", by=REPLICA)
WHO = f"{label('namespace')}/{label('pipeline')}, replica {label('replica')}"

_WAITING, _RUNNING = (
    LATELY.sum(f"avg_over_time(pipedec_num_requests_{state}[5m])") for state in ("waiting", "running")
)
_LOADED = f"({LATELY.sum('min_over_time(pipedec_num_requests_running[5m])')} > 0)"
_DRAFTS = f"{LATELY.rate('pipedec_head_draft_rows_total')} > 0"  # what the text alone predicts is seldom half of it
_STAGES = LATELY.sum("pipedec_head_stages", operator="max")
_MEAN_STEP = LATELY.sum("pipedec_head_stage_step_seconds", operator="avg")


def _lost(gauge: str) -> str:
    """Where a gauge is 0 that was 1: what is still loading never was, and for PipeDecDeploymentUnavailable to tell."""
    return f"({gauge} == 0 and max_over_time({gauge}[1d]) == 1)"


SERVICE = (
    Alert(
        "PipeDecEndpointDown",
        "critical",
        "1m",
        _lost('up{job="pipedec", container="draft"}'),
        f"The endpoint of {WHO} does not answer",
        f"Prometheus has not reached the draft pod {label('pod')} for a minute. Clients get no answer.",
    ),
    Alert(
        "PipeDecNotFormed",
        "critical",
        "2m",
        f"{LATELY.sum(_lost('pipedec_head_epoch_live'), operator='max')} == 0",
        f"No formation of {WHO}",
        "The stages have not been in one formation for two minutes. Requests wait, and nothing is decoded.",
    ),
    Alert(
        "PipeDecStageMissing",
        "warning",
        "2m",
        f"{LATELY.sum(_lost('pipedec_head_stage_present'), 'stage', operator='max')} == 0",
        f"Stage {label('stage')} of {WHO} is missing",
        "The head has not heard of the stage for two minutes. Without it the pipeline does not form.",
    ),
    Alert(
        "PipeDecFrequentRecoveries",
        "warning",
        "0m",
        f"{HALF_HOUR.increase('pipedec_head_epochs_lost_total')} > 3",
        f"{WHO} lost its formation {value('humanize')} times in half an hour",
        "Requests survive each loss, but wait for a new formation and for their prompts to be read anew.",
    ),
    Alert(
        "PipeDecHighErrorRate",
        "critical",
        "5m",
        f"{measures.failed_requests(LATELY)} > 0.05",
        f"{WHO} fails {value('humanizePercentage')} of its requests",
        "More than one request in twenty ends with an error that is the service's own.",
    ),
    Alert(
        "PipeDecQueueBuildup",
        "warning",
        "10m",
        f"{_WAITING} > {_RUNNING}",
        f"Requests that wait for {WHO}: {value('humanize')}",
        "More requests wait than are being decoded, and have for ten minutes.",
    ),
    Alert(
        "PipeDecHighTTFT",
        "warning",
        "10m",
        f"{LATELY.quantile(0.95, 'pipedec_time_to_first_token_seconds')} > 10",
        f"First tokens of {WHO} take up to {value('humanizeDuration')}",
        "One request in twenty waits longer than that for its first token.",
    ),
    Alert(
        "PipeDecKVCacheSaturation",
        "warning",
        "10m",
        f"{LATELY.sum('pipedec_kv_cache_usage_perc', operator='max')} > 0.95",
        f"{value('humanizePercentage')} of the KV slots of {WHO} are in use",
        "New requests wait for slots, and younger ones go back to the queue for older ones.",
    ),
)

SPEED = (
    Alert(
        "PipeDecDraftDegraded",
        "warning",
        "5m",
        f"{LATELY.sum('pipedec_head_degraded', operator='max')} == 1",
        f"{WHO} decodes without its draft model",
        "The draft model failed or is too slow. Answers are the same, but come more slowly: policy adaptive goes on "
        "with what the text repeats, any other at the speed of plain pipeline parallelism.",
    ),
    Alert(
        "PipeDecLowAcceptance",
        "info",
        "30m",
        f"{measures.hit_rate(LATELY)} < 0.5\nand {_DRAFTS}",
        f"{WHO} predicts {value('humanizePercentage')} of its tokens",
        "The draft model guesses wrong so often that the pipeline is mostly empty.",
    ),
    Alert(
        "PipeDecLowUtilization",
        "info",
        "30m",
        f"{measures.utilization(LATELY)} < 0.5 / {_STAGES}\nand {_LOADED}",
        f"{WHO} uses {value('humanizePercentage')} of its stages' time",
        "Under load, less of it becomes tokens than half of what plain pipeline parallelism uses for a single request.",
    ),
    Alert(
        "PipeDecSlowStage",
        "warning",
        "15m",
        f"pipedec_head_stage_step_seconds\n> on ({REPLICA}) group_left () 1.5 * {_MEAN_STEP}",
        f"Stage {label('stage')} holds up {WHO}",
        f"A step takes it {value('humanizeDuration')}, half as long again as the stages' mean. All wait for it.",
    ),
)

SECURITY = (
    Alert(
        "PipeDecMalformedMessages",
        "warning",
        "0m",
        f"{measures.malformed(LATELY)} > 0",
        f"Messages to {WHO} that no peer sends: {value('humanize')}",
        "They were dropped. Only a holder of the pipeline's keys can have sent them: a broken pod, or a stolen key.",
    ),
    Alert(
        "PipeDecUnauthenticatedConnections",
        "warning",
        "5m",
        f"{measures.strangers(LATELY)} > 10",
        f"Connections to {WHO} without its key: {value('humanize')}",
        "They were refused. Somebody scans the ports, or a pod has other keys.",
    ),
    Alert(
        "PipeDecRefusedRegistrations",
        "warning",
        "10m",
        f"{LATELY.increase('pipedec_head_refused_registrations_total')} > 0",
        f"{WHO} refuses a stage",
        "A stage that does not fit keeps registering: it is of another revision, or its place is taken.",
    ),
)
