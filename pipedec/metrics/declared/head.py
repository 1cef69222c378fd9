"""What the head of a pipeline does: batches, predictions, hits, the draft model, and the epoch it is in."""

from __future__ import annotations

from pipedec.metrics.family import Catalogue

POSITIONS = tuple(str(position) for position in range(16))  # as vLLM counts them
NODES = tuple(2.0**power for power in range(13))
LEVELS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
ROWS = tuple(2.0**power for power in range(11))
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)

families = Catalogue(model_name="the served model")
_STAGE = "index of the stage"

INFO = families.gauge(
    "pipedec_head_info",
    "1",
    "1, labelled with the speculation policy.",
    "count by (policy) (pipedec_head_info)",
    policy=("none", "static-tree", "pipedec", "adaptive"),
)
HITS = families.counter(
    "pipedec_head_hits_total",
    "tokens",
    "Decided tokens whose node was in the pipeline already.",
    "rate(pipedec_head_hits_total[1m]) / (rate(pipedec_head_hits_total[1m]) + rate(pipedec_head_misses_total[1m]) > 0)",
)
MISSES = families.counter(
    "pipedec_head_misses_total",
    "tokens",
    "Decided tokens that had to be sent after they were decided.",
    "sum by (model_name) (rate(pipedec_head_misses_total[1m]))",
)
BATCHES = families.counter(
    "pipedec_head_batches_total",
    "batches",
    "Batches sent into the pipeline: steps.",
    "(rate(pipedec_head_hits_total[1m]) + rate(pipedec_head_misses_total[1m]))"
    " / (rate(pipedec_head_batches_total[1m]) > 0)",
)
SEQUENCE_STEPS = families.counter(
    "pipedec_head_sequence_steps_total",
    "steps",
    "Batches that carried tree rows of a request, added up over requests: tokens decided per such step are what one "
    "request sees of the speed.",
    "(rate(pipedec_head_hits_total[1m]) + rate(pipedec_head_misses_total[1m]))"
    " / (rate(pipedec_head_sequence_steps_total[1m]) > 0)",
)
LEVELS_SENT = families.counter(
    "pipedec_head_levels_total",
    "levels",
    "Levels of prediction trees that entered the pipeline, each counted with its first row; a certain token that "
    "had to be sent is one.",
    "rate(pipedec_head_levels_total[1m]) / (rate(pipedec_head_sequence_steps_total[1m]) > 0)",
)
PREFILL_ROWS = families.counter(
    "pipedec_head_prefill_rows_total",
    "rows",
    "Prompt tokens sent into the pipeline, those of resumed requests again.",
    "sum by (model_name) (rate(pipedec_head_prefill_rows_total[1m]))",
)
CERTAIN_ROWS = families.counter(
    "pipedec_head_certain_rows_total",
    "rows",
    "Certain tokens sent into the pipeline as tree rows.",
    "sum by (model_name) (rate(pipedec_head_certain_rows_total[1m]))",
)
PREDICTED_ROWS = families.counter(
    "pipedec_head_predicted_rows_total",
    "rows",
    "Predictions sent into the pipeline.",
    "rate(pipedec_head_predicted_rows_total[1m]) / (rate(pipedec_head_batches_total[1m]) > 0)",
)
WASTED_ROWS = families.counter(
    "pipedec_head_wasted_rows_total",
    "rows",
    "Predictions sent that cannot become tokens any more. Those sent are hits, wasted, or still in flight.",
    "rate(pipedec_head_wasted_rows_total[1m]) / (rate(pipedec_head_predicted_rows_total[1m]) > 0)",
)
NUM_DRAFTS = families.counter(
    "pipedec_spec_decode_num_drafts_total",
    "drafts",
    "Batches that carried predictions of a request, added up over requests.",
    "1 + rate(pipedec_spec_decode_num_accepted_tokens_total[1m])"
    " / (rate(pipedec_spec_decode_num_drafts_total[1m]) > 0)",
)
NUM_DRAFT_TOKENS = families.counter(
    "pipedec_spec_decode_num_draft_tokens_total",
    "tokens",
    "Predictions sent into the pipeline, under vLLM's name.",
    "rate(pipedec_spec_decode_num_accepted_tokens_total[1m])"
    " / (rate(pipedec_spec_decode_num_draft_tokens_total[1m]) > 0)",
)
NUM_ACCEPTED_TOKENS = families.counter(
    "pipedec_spec_decode_num_accepted_tokens_total",
    "tokens",
    "Predictions that became tokens, under vLLM's name: hits.",
    "sum by (model_name) (rate(pipedec_spec_decode_num_accepted_tokens_total[1m]))",
)
NUM_ACCEPTED_TOKENS_PER_POS = families.counter(
    "pipedec_spec_decode_num_accepted_tokens_per_pos_total",
    "tokens",
    "Predictions that became tokens, by how many levels they were ahead when they were sent; 0: one level, "
    "15: sixteen or more.",
    "sum by (position) (rate(pipedec_spec_decode_num_accepted_tokens_per_pos_total[5m]))",
    position=POSITIONS,
)
TREE_NODES = families.histogram(
    "pipedec_head_tree_nodes",
    "nodes",
    "Nodes of a request's prediction tree, whenever a batch carries rows of it.",
    "rate(pipedec_head_tree_nodes_sum[1m]) / (rate(pipedec_head_tree_nodes_count[1m]) > 0)",
    NODES,
)
TREE_DEPTH = families.histogram(
    "pipedec_head_tree_depth",
    "levels",
    "Levels below the cursor of which rows were sent, whenever a batch carries rows of the request.",
    "rate(pipedec_head_tree_depth_sum[1m]) / (rate(pipedec_head_tree_depth_count[1m]) > 0)",
    LEVELS,
)
BATCH_ROWS = families.histogram(
    "pipedec_head_batch_rows",
    "rows",
    "Rows of a batch, prompt tokens included.",
    "histogram_quantile(0.9, sum by (model_name, le) (rate(pipedec_head_batch_rows_bucket[5m])))",
    ROWS,
)
ROUND_TRIP = families.histogram(
    "pipedec_head_round_trip_seconds",
    "seconds",
    "From sending a batch until its verdict: all stages and all links.",
    "histogram_quantile(0.5, sum by (model_name, le) (rate(pipedec_head_round_trip_seconds_bucket[5m])))",
    SECONDS,
)
DRAFT_SECONDS = families.histogram(
    "pipedec_head_draft_seconds",
    "seconds",
    "From asking the draft model until its proposals are here.",
    "rate(pipedec_head_draft_seconds_sum[1m]) / (rate(pipedec_head_draft_seconds_count[1m]) > 0)",
    SECONDS,
)
DRAFT_ROWS = families.counter(
    "pipedec_head_draft_rows_total",
    "rows",
    "Nodes that the draft model evaluated.",
    "rate(pipedec_head_draft_rows_total[1m]) / (rate(pipedec_head_draft_seconds_count[1m]) > 0)",
)
DRAFT_FAILURES = families.counter(
    "pipedec_head_draft_failures_total",
    "failures",
    "Times that the draft model failed or was too slow, and decoding went on without it.",
    "increase(pipedec_head_draft_failures_total[10m]) > 0",
)
DEGRADED = families.gauge(
    "pipedec_head_degraded",
    "bool",
    "1 while decoding goes on without the draft model asked for.",
    "pipedec_head_degraded == 1",
)
NUM_RUNNING = families.gauge(
    "pipedec_num_requests_running",
    "requests",
    "Sequences that are being decoded.",
    "sum by (model_name) (pipedec_num_requests_running)",
)
NUM_WAITING = families.gauge(
    "pipedec_num_requests_waiting",
    "requests",
    "Sequences that wait for their turn.",
    "sum by (model_name) (pipedec_num_requests_waiting)",
)
PREFIX_QUERIES = families.counter(
    "pipedec_prefix_cache_queries_total",
    "tokens",
    "Prompt tokens that could have been computed for an earlier request.",
    "sum by (model_name) (rate(pipedec_prefix_cache_queries_total[5m]))",
)
PREFIX_HITS = families.counter(
    "pipedec_prefix_cache_hits_total",
    "tokens",
    "Prompt tokens that were, and so were not computed again.",
    "sum by (model_name) (rate(pipedec_prefix_cache_hits_total[5m]))"
    " / (sum by (model_name) (rate(pipedec_prefix_cache_queries_total[5m])) > 0)",
)
NUM_PREEMPTIONS = families.counter(
    "pipedec_num_preemptions_total",
    "requests",
    "Sequences that went back to the queue for want of a KV slot for an older one, or because another must run alone.",
    "sum by (model_name) (increase(pipedec_num_preemptions_total[5m]))",
)
RESUMPTIONS = families.counter(
    "pipedec_head_resumptions_total",
    "requests",
    "Sequences that went back to the queue because their formation was lost; they go on where they were.",
    "sum by (model_name) (increase(pipedec_head_resumptions_total[10m]))",
)
GIVEN_UP = families.counter(
    "pipedec_head_given_up_total",
    "requests",
    "Requests ended with an error because the pipeline cannot compute them, or breaks down at them.",
    "increase(pipedec_head_given_up_total[10m]) > 0",
)
KV_USAGE = families.gauge(
    "pipedec_kv_cache_usage_perc",
    "ratio",
    "Share of the KV slots that requests hold, 0 to 1; what is merely kept for later ones gives way.",
    "max by (model_name) (pipedec_kv_cache_usage_perc)",
)
KV_SLOTS = families.gauge(
    "pipedec_head_kv_slots",
    "slots",
    "KV slots of the formation; every stage has that many.",
    "min by (model_name) (pipedec_head_kv_slots)",
)
KV_SLOTS_USED = families.gauge(
    "pipedec_head_kv_slots_used",
    "slots",
    "KV slots that requests hold, for tokens certain or predicted; the same ones at every stage.",
    "max by (model_name) (pipedec_head_kv_slots_used)",
)
IN_FLIGHT = families.gauge(
    "pipedec_head_batches_in_flight",
    "batches",
    "Batches in the pipeline.",
    "avg_over_time(pipedec_head_batches_in_flight[1m]) / pipedec_head_stages",
)
STAGES = families.gauge(
    "pipedec_head_stages",
    "stages",
    "Stages of the pipeline.",
    "pipedec_head_stages",
)
EPOCH = families.gauge(
    "pipedec_head_epoch",
    "epoch",
    "Number of the newest epoch: the milliseconds since 1970 when the head began, plus one for each that was begun.",
    "changes(pipedec_head_epoch[10m])",
)
EPOCH_LIVE = families.gauge(
    "pipedec_head_epoch_live",
    "bool",
    "1 while a formation is live.",
    "pipedec_head_epoch_live == 0",
)
EPOCHS_LOST = families.counter(
    "pipedec_head_epochs_lost_total",
    "epochs",
    "Formations that ended, for whatever reason.",
    "increase(pipedec_head_epochs_lost_total[10m]) > 3",
)
STAGE_PRESENT = families.gauge(
    "pipedec_head_stage_present",
    "bool",
    "1 while the stage is registered and was heard of late.",
    "pipedec_head_stage_present == 0",
    stage=_STAGE,
)
HEARTBEAT_AGE = families.gauge(
    "pipedec_head_heartbeat_age_seconds",
    "seconds",
    "Since the stage was last heard; infinite if never, or if it cannot be reached.",
    "max by (stage) (pipedec_head_heartbeat_age_seconds) > 10",
    stage=_STAGE,
)
STAGE_STEP = families.gauge(
    "pipedec_head_stage_step_seconds",
    "seconds",
    "What a step of fewest rows lately took the stage, as it says itself; absent until it has computed some.",
    "topk(1, pipedec_head_stage_step_seconds)",
    stage=_STAGE,
)
PLAIN_TOKEN = families.gauge(
    "pipedec_head_plain_token_seconds",
    "seconds",
    "What a token would take by plain pipeline parallelism: the sum of all stages' steps of fewest rows, links left "
    "out. Absent until every stage has computed some.",
    "pipedec_head_plain_token_seconds * rate(pipedec_inter_token_latency_seconds_count[5m])"
    " / (rate(pipedec_inter_token_latency_seconds_sum[5m]) > 0)",
)
STALE_VERDICTS = families.counter(
    "pipedec_head_stale_verdicts_total",
    "messages",
    "Verdicts dropped: of another epoch, repeated, or after one that was lost.",
    "increase(pipedec_head_stale_verdicts_total[5m]) > 0",
)
REFUSED_REGISTRATIONS = families.counter(
    "pipedec_head_refused_registrations_total",
    "messages",
    "Registrations of stages that do not fit, or that another process made already.",
    "increase(pipedec_head_refused_registrations_total[5m]) > 0",
)
MALFORMED = families.counter(
    "pipedec_head_malformed_messages_total",
    "messages",
    "Messages dropped because they were malformed.",
    "increase(pipedec_head_malformed_messages_total[5m]) > 0",
)
UNAUTHENTICATED = families.counter(
    "pipedec_head_unauthenticated_connections_total",
    "connections",
    "Connections to the control and verdict ports without the pipeline's key.",
    "increase(pipedec_head_unauthenticated_connections_total[5m]) > 0",
)
