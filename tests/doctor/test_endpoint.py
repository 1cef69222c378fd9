"""What the doctor makes of what a pipeline answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipedec.doctor import EndpointFacts, exit_status, judge_endpoint
from pipedec.doctor.endpoint import Answer, Sample
from pipedec.metrics.reference import SECTIONS

OK = Answer(200, body={"status": "ok"})
MODELS = Answer(200, body={"data": [{"id": "lion", "max_model_len": 2048}]})
HEALTHY = {
    "pipedec_head_info": 1.0,
    "pipedec_head_epoch_live": 1.0,
    "pipedec_head_epochs_lost_total": 0.0,
    "pipedec_head_stages": 2.0,
    "pipedec_head_degraded": 0.0,
    "pipedec_head_hits_total": 900.0,
    "pipedec_head_misses_total": 100.0,
    "pipedec_head_plain_token_seconds": 0.2,
    "pipedec_inter_token_latency_seconds_sum": 50.0,
    "pipedec_inter_token_latency_seconds_count": 1000.0,
    "pipedec_num_requests_running": 1.0,
    "pipedec_num_requests_waiting": 0.0,
    "pipedec_kv_cache_usage_perc": 0.1,
    "pipedec_head_unauthenticated_connections_total": 0.0,
    "pipedec_head_malformed_messages_total": 0.0,
}
BY_LABEL = (
    Sample("pipedec_head_stage_present", {"stage": "0"}, 1.0),
    Sample("pipedec_head_stage_present", {"stage": "1"}, 1.0),
    Sample("pipedec_head_stage_step_seconds", {"stage": "0"}, 0.1),
    Sample("pipedec_head_stage_step_seconds", {"stage": "1"}, 0.1),
    Sample("pipedec_request_success_total", {"finished_reason": "stop"}, 100.0),
    Sample("pipedec_request_success_total", {"finished_reason": "error"}, 0.0),
)


def facts(policy: str = "adaptive", **changed: float) -> EndpointFacts:
    plain = [
        Sample(name, {"policy": policy} if name == "pipedec_head_info" else {}, value)
        for name, value in (HEALTHY | changed).items()
    ]
    labelled = [sample for sample in BY_LABEL if sample.name not in changed]
    return EndpointFacts("http://x", OK, OK, MODELS, replace(OK, seconds=0.25), (*plain, *labelled))


def told(found: EndpointFacts) -> dict[str, tuple[str, str, str]]:
    return {each.check: (each.level, each.message, each.remedy) for each in judge_endpoint(found)}


def test_a_healthy_pipeline_needs_nothing() -> None:
    findings = judge_endpoint(facts())
    assert exit_status(findings) == 0
    assert {each.level for each in findings} == {"ok"}
    assert told(facts())["speed-up"][1] == "a request decodes 4.0 times as fast as by plain pipeline parallelism"
    assert told(facts())["completion"][1] == "one token in 250 ms"
    assert told(facts())["models"][1] == "lion (up to 2048 tokens)"


@pytest.mark.parametrize(
    ("name", "value", "check", "level", "words"),
    [
        ("pipedec_head_degraded", 1.0, "draft", "warn", "without the draft model"),
        ("pipedec_head_epochs_lost_total", 3.0, "stages", "warn", "3 formations lost"),
        ("pipedec_head_epoch_live", 0.0, "stages", "fail", "there is no formation"),
        ("pipedec_head_misses_total", 900.0, "hit rate", "warn", "50% of tokens"),
        ("pipedec_head_plain_token_seconds", 0.04, "speed-up", "warn", "0.8 times as fast"),
        ("pipedec_num_requests_waiting", 7.0, "queue", "warn", "requests: 1 running, 7 waiting"),
        ("pipedec_kv_cache_usage_perc", 0.95, "KV slots", "warn", "95% in use"),
        ("pipedec_head_malformed_messages_total", 4.0, "security", "warn", "4 malformed messages"),
        ("pipedec_head_unauthenticated_connections_total", 2.0, "security", "warn", "2 unauthenticated connections"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(name: str, value: float, check: str, level: str, words: str) -> None:
    found = told(facts(**{name: value}))
    assert found[check][0] == level
    assert words in found[check][1]
    assert found[check][2]


def with_samples(*samples: Sample) -> EndpointFacts:
    found = facts(**{name: 0.0 for name in {sample.name for sample in samples}})
    return replace(found, samples=(*(s for s in found.samples if s.name not in {x.name for x in samples}), *samples))


def test_a_missing_stage_is_named() -> None:
    found = with_samples(*(Sample("pipedec_head_stage_present", {"stage": str(i)}, float(i != 10)) for i in range(12)))
    assert told(found)["stages"][:2] == ("fail", "missing: 10")


def test_the_slowest_stage_is_named() -> None:
    times = (0.1, 0.1, 0.2, 0.1)
    found = with_samples(
        *(Sample("pipedec_head_stage_step_seconds", {"stage": str(i)}, time) for i, time in enumerate(times))
    )
    level, message, remedy = told(found)["balance"]
    assert (level, message) == ("warn", "stage 2 is the slowest: 200.0 ms, 1.60 times the mean")
    assert "pipeline.layers" in remedy


def test_failed_requests_are_counted() -> None:
    found = with_samples(
        Sample("pipedec_request_success_total", {"finished_reason": "stop"}, 90.0),
        Sample("pipedec_request_success_total", {"finished_reason": "error"}, 10.0),
    )
    assert told(found)["requests"][:2] == ("warn", "10 of 100 failed")


def test_rates_of_a_few_tokens_are_not_judged() -> None:
    found = told(facts(pipedec_head_hits_total=3.0, pipedec_head_misses_total=9.0))
    assert found["hit rate"][:2] == ("skip", "only 12 tokens decided so far")
    assert told(facts(policy="none"))["hit rate"][:2] == ("skip", "policy none makes no predictions")


def test_a_pipeline_without_a_draft_model_is_not_blamed_for_its_misses() -> None:
    rare = {"pipedec_head_hits_total": 200.0, "pipedec_head_misses_total": 800.0}
    assert told(facts(**rare, pipedec_head_draft_rows_total=9.0))["hit rate"][0] == "warn"
    assert told(facts(**rare, pipedec_head_draft_rows_total=0.0))["hit rate"][:2] == (
        "skip",
        "20% of tokens were predicted in time, without a draft model",
    )


def test_what_the_endpoint_refuses_is_explained() -> None:
    locked = replace(facts(), models=Answer(401, "a valid API key is needed"), completion=None)
    assert told(locked)["models"][0] == "fail"
    assert "--api-key-file" in told(locked)["models"][2]
    full = replace(facts(), completion=Answer(429, "the queue is full"))
    assert "serving.maxQueue" in told(full)["completion"][2]
    loading = replace(facts(), ready=Answer(503, "stage 1 is missing"), completion=None)
    assert told(loading)["ready"][:2] == ("fail", "stage 1 is missing")
    silent = Answer(0, "Connection refused")
    (only,) = judge_endpoint(EndpointFacts("http://x", silent, silent, silent, None))
    assert (only.level, only.check) == ("fail", "health")
    assert exit_status([only]) == 2


def test_every_metric_that_is_judged_is_one_that_the_services_declare() -> None:
    declared = {family.name for section in SECTIONS.values() for family in section}
    used = {sample.name for sample in facts().samples}
    assert {name.removesuffix("_sum").removesuffix("_count") for name in used} <= declared
