"""What clients experience: queue, latencies, tokens and outcomes of requests.

Names, `finished_reason` and buckets are vLLM's. A *request* here is one sequence: `n` choices are `n` requests.
"""

from __future__ import annotations

from typing import Literal

from pipedec.metrics.family import Catalogue

FinishedReason = Literal["stop", "length", "abort", "error"]
FINISHED_REASONS: tuple[FinishedReason, ...] = ("stop", "length", "abort", "error")

TO_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
END_TO_END = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
LENGTHS = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)

families = Catalogue(model_name="the served model")

PROMPT_TOKENS = families.counter(
    "pipedec_prompt_tokens_total",
    "tokens",
    "Prompt tokens of requests that got a first token.",
    "sum by (model_name) (rate(pipedec_prompt_tokens_total[1m]))",
)
GENERATION_TOKENS = families.counter(
    "pipedec_generation_tokens_total",
    "tokens",
    "Tokens generated.",
    "sum by (model_name) (rate(pipedec_generation_tokens_total[1m]))",
)
REQUEST_SUCCESS = families.counter(
    "pipedec_request_success_total",
    "requests",
    "Finished requests, by reason; `abort`: the client went away, `error`: the service failed it.",
    'sum(rate(pipedec_request_success_total{finished_reason="error"}[5m]))'
    " / (sum(rate(pipedec_request_success_total[5m])) > 0)",
    finished_reason=FINISHED_REASONS,
)
TIME_TO_FIRST_TOKEN = families.histogram(
    "pipedec_time_to_first_token_seconds",
    "seconds",
    "From a request's arrival to its first token.",
    "histogram_quantile(0.99, sum by (model_name, le) (rate(pipedec_time_to_first_token_seconds_bucket[5m])))",
    TO_FIRST_TOKEN,
)
INTER_TOKEN_LATENCY = families.histogram(
    "pipedec_inter_token_latency_seconds",
    "seconds",
    "Between two tokens of one request; tokens that were decided at once come at once.",
    "rate(pipedec_inter_token_latency_seconds_sum[1m]) / (rate(pipedec_inter_token_latency_seconds_count[1m]) > 0)",
    PER_TOKEN,
)
TIME_PER_OUTPUT_TOKEN = families.histogram(
    "pipedec_request_time_per_output_token_seconds",
    "seconds",
    "Mean time between the tokens of one finished request.",
    "histogram_quantile(0.5, sum by (model_name, le) (rate(pipedec_request_time_per_output_token_seconds_bucket[5m])))",
    PER_TOKEN,
)
E2E_LATENCY = families.histogram(
    "pipedec_e2e_request_latency_seconds",
    "seconds",
    "From a request's arrival to its last token.",
    "histogram_quantile(0.95, sum by (model_name, le) (rate(pipedec_e2e_request_latency_seconds_bucket[5m])))",
    END_TO_END,
)
QUEUE_TIME = families.histogram(
    "pipedec_request_queue_time_seconds",
    "seconds",
    "From a request's arrival until it was given a place in the pipeline.",
    "histogram_quantile(0.95, sum by (model_name, le) (rate(pipedec_request_queue_time_seconds_bucket[5m])))",
    END_TO_END,
)
PREFILL_TIME = families.histogram(
    "pipedec_request_prefill_time_seconds",
    "seconds",
    "From a request's place in the pipeline to its first token.",
    "histogram_quantile(0.95, sum by (model_name, le) (rate(pipedec_request_prefill_time_seconds_bucket[5m])))",
    END_TO_END,
)
DECODE_TIME = families.histogram(
    "pipedec_request_decode_time_seconds",
    "seconds",
    "From a request's first token to its last.",
    "histogram_quantile(0.95, sum by (model_name, le) (rate(pipedec_request_decode_time_seconds_bucket[5m])))",
    END_TO_END,
)
INFERENCE_TIME = families.histogram(
    "pipedec_request_inference_time_seconds",
    "seconds",
    "From a request's place in the pipeline to its last token.",
    "histogram_quantile(0.95, sum by (model_name, le) (rate(pipedec_request_inference_time_seconds_bucket[5m])))",
    END_TO_END,
)
NUM_PROMPT_TOKENS = families.histogram(
    "pipedec_request_prompt_tokens",
    "tokens",
    "Prompt tokens of a finished request.",
    "histogram_quantile(0.5, sum by (model_name, le) (rate(pipedec_request_prompt_tokens_bucket[5m])))",
    LENGTHS,
)
NUM_GENERATION_TOKENS = families.histogram(
    "pipedec_request_generation_tokens",
    "tokens",
    "Tokens generated for a finished request.",
    "histogram_quantile(0.5, sum by (model_name, le) (rate(pipedec_request_generation_tokens_bucket[5m])))",
    LENGTHS,
)
PARAMS_N = families.histogram(
    "pipedec_request_params_n",
    "choices",
    "Choices asked for (`n`).",
    "rate(pipedec_request_params_n_sum[5m]) / (rate(pipedec_request_params_n_count[5m]) > 0)",
    CHOICES,
)
PARAMS_MAX_TOKENS = families.histogram(
    "pipedec_request_params_max_tokens",
    "tokens",
    "Most tokens that a request may have generated.",
    "histogram_quantile(0.5, sum by (model_name, le) (rate(pipedec_request_params_max_tokens_bucket[5m])))",
    LENGTHS,
)

responses = Catalogue()

HTTP_RESPONSES = responses.counter(
    "pipedec_http_responses_total",
    "responses",
    "HTTP responses, by route and status.",
    'sum by (route) (rate(pipedec_http_responses_total{status=~"5.."}[5m]))',
    route="the routes of the endpoint, and `unmatched`",
    status="HTTP status codes",
)
