"""What is the prediction tree worth? Hits, waste, the tree itself, and the draft model that grows it."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from observability import measures
from observability.layout import Line, Section
from observability.panels import Query, time_series
from observability.pipeline.scope import HERE, NODES, ROWS_PER_SECOND, STAGE, TOKENS_PER_SECOND, quantiles
from observability.promql import share


def section() -> Section:
    return Section("What is the prediction tree worth?", [Line(8, _gain()), Line(8, _rows()), Line(8, _draft())])


def _gain() -> list[models.Panel]:
    levels = share(HERE.rate("pipedec_head_levels_total"), HERE.rate("pipedec_head_sequence_steps_total"))
    plain = HERE.sum(HERE.of("pipedec_head_plain_token_seconds"), operator="avg")
    return [
        time_series(
            "Hit rate",
            units.PercentUnit,
            "Share of decided tokens that were in the pipeline already.",
            Query(measures.hit_rate(HERE), "hit rate"),
            most=1.0,
        ),
        time_series(
            "Tokens and levels per step",
            units.Short,
            "Tokens that a batch decides of a request, and levels of its tree that a batch carries.",
            Query(measures.tokens_per_step(HERE), "tokens"),
            Query(levels, "levels"),
        ),
        time_series(
            "Speed of a request",
            TOKENS_PER_SECOND,
            "Tokens per second of one request, beside what plain pipeline parallelism could give to one request alone.",
            Query(f"1 / ({measures.inter_token_latency(HERE)} > 0)", "now"),
            Query(f"1 / ({plain} > 0)", "plain pipeline parallelism"),
        ),
    ]


def _rows() -> list[models.Panel]:
    computed, useful = HERE.rate("pipedec_stage_rows_total"), HERE.rate("pipedec_stage_useful_rows_total")
    return [
        time_series(
            "Rows of the stages",
            ROWS_PER_SECOND,
            "Rows of all stages. Useful ones became tokens, wasted ones were computed in vain, cancelled ones were "
            "dropped before they cost anything.",
            Query(useful, "useful"),
            Query(f"clamp_min({computed} - {useful}, 0)", "wasted"),
            Query(HERE.rate("pipedec_stage_cancelled_rows_total"), "cancelled"),
            stacked=True,
        ),
        time_series(
            "Rows wasted, by stage",
            units.PercentUnit,
            "Share of computed rows that became nothing. It falls from stage to stage, as verdicts cancel rows on "
            "their way.",
            Query(measures.wasted_rows(HERE, "stage"), STAGE),
            most=1.0,
        ),
        time_series(
            "Hits by position",
            TOKENS_PER_SECOND,
            "Predictions that became tokens, by how many levels below the newest certain token they were sent. A long "
            "pipeline is filled only by deep ones.",
            Query(HERE.rate("pipedec_spec_decode_num_accepted_tokens_per_pos_total", by="position"), "{{position}}"),
            stacked=True,
        ),
    ]


def _draft() -> list[models.Panel]:
    per_run = share(HERE.rate("pipedec_head_draft_rows_total"), HERE.rate("pipedec_head_draft_seconds_count"))
    return [
        time_series(
            "Prediction tree",
            units.Short,
            "Nodes of a request's tree, and levels of it that are in the pipeline, on average.",
            Query(HERE.mean("pipedec_head_tree_nodes"), "nodes"),
            Query(HERE.mean("pipedec_head_tree_depth"), "levels"),
        ),
        time_series(
            "Draft model, time of a run",
            units.Seconds,
            "From asking the draft model until its proposals are here. It should stay below the slowest stage's step.",
            *quantiles("pipedec_head_draft_seconds"),
        ),
        time_series(
            "Draft model, nodes per run",
            NODES,
            "Nodes that one run of the draft model evaluates.",
            Query(per_run, "nodes"),
        ),
    ]
