"""What a real pipeline tells after a few requests: every metric is there, and the numbers agree with one another; its
log has an object per line, every event of a request and of the formation, and no text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import Metric

from pipedec.metrics.declared import head, process, requests, stage
from pipedec.metrics.family import Family
from tests.metrics.conftest import MODEL, REQUEST_ID, SECRET, STAGES, TOKENS, Pipeline, value
from tests.sockets import until

Event = dict[str, Any]

WARM_UP = 1  # request, of one token, before the first


def check_all_there(found: dict[str, Metric], declared: Iterable[Family]) -> None:
    families = [*declared, *process.families]
    for family in families:
        assert found[family.name].samples, family.name
        assert found[family.name].type == family.kind
    assert {name for name in found if name.startswith("pipedec_")} == {family.name for family in families}


def test_the_draft_process_tells_all_that_is_documented(pipeline: Pipeline) -> None:
    check_all_there(pipeline.scrape("draft"), [*head.families, *requests.families, *requests.responses])


def test_every_stage_tells_all_that_is_documented(pipeline: Pipeline) -> None:
    for found in pipeline.stages():
        check_all_there(found, stage.families)


def test_tokens_add_up(pipeline: Pipeline) -> None:
    found, sent = pipeline.scrape("draft"), len(pipeline.answers)
    hits, misses = value(found, "pipedec_head_hits_total"), value(found, "pipedec_head_misses_total")
    assert value(found, "pipedec_generation_tokens_total") == sent * TOKENS
    assert hits + misses == sent * TOKENS + WARM_UP
    assert value(found, "pipedec_request_success_total", finished_reason="length") == sent
    assert value(found, "pipedec_prompt_tokens_total") == sum(
        each["usage"]["prompt_tokens"] for each in pipeline.answers
    )
    steps = sum(each["pipedec"]["steps"] for each in pipeline.answers) + WARM_UP
    assert value(found, "pipedec_head_sequence_steps_total") == steps
    rate = hits / (sent * TOKENS)
    assert rate == pytest.approx(sum(each["pipedec"]["hit_rate"] for each in pipeline.answers) / sent)


def test_predictions_are_hits_or_waste(pipeline: Pipeline) -> None:
    found = pipeline.scrape("draft")
    predicted, hits = value(found, "pipedec_head_predicted_rows_total"), value(found, "pipedec_head_hits_total")
    assert 0 < hits < predicted
    assert predicted == hits + value(found, "pipedec_head_wasted_rows_total")
    assert predicted == value(found, "pipedec_spec_decode_num_draft_tokens_total")
    assert hits == value(found, "pipedec_spec_decode_num_accepted_tokens_total")
    assert hits == value(found, "pipedec_spec_decode_num_accepted_tokens_per_pos_total")
    drafts, steps = (
        value(found, f"pipedec_{name}_total") for name in ("spec_decode_num_drafts", "head_sequence_steps")
    )
    assert 0 < drafts <= steps
    assert value(found, "pipedec_head_levels_total") >= hits


def test_distributions_are_of_all_steps(pipeline: Pipeline) -> None:
    found = pipeline.scrape("draft")
    batches = value(found, "pipedec_head_batches_total")
    kinds = ("prefill", "certain", "predicted")
    assert value(found, "pipedec_head_batch_rows_count") == batches
    assert value(found, "pipedec_head_batch_rows_sum") == sum(
        value(found, f"pipedec_head_{k}_rows_total") for k in kinds
    )
    assert value(found, "pipedec_head_round_trip_seconds_count") == batches
    for name in ("pipedec_head_tree_nodes", "pipedec_head_tree_depth"):
        assert value(found, f"{name}_count") == value(found, "pipedec_head_sequence_steps_total")
        assert value(found, f"{name}_sum") > 0
    assert value(found, "pipedec_head_draft_seconds_count") > 0
    for name in ("queue", "prefill", "decode", "inference"):
        assert value(found, f"pipedec_request_{name}_time_seconds_count") == len(pipeline.answers)
    parts = (value(found, f"pipedec_request_{name}_time_seconds_sum") for name in ("queue", "inference"))
    assert sum(parts) == pytest.approx(value(found, "pipedec_e2e_request_latency_seconds_sum"))


def test_stages_compute_what_the_head_sends(pipeline: Pipeline) -> None:
    found, stages, sent = pipeline.scrape("draft"), pipeline.stages(), len(pipeline.answers) + WARM_UP
    rows = sum(value(found, f"pipedec_head_{kind}_rows_total") for kind in ("prefill", "certain", "predicted"))
    useful = rows - value(found, "pipedec_head_wasted_rows_total")
    for each in stages:
        assert value(each, "pipedec_stage_steps_total") == value(found, "pipedec_head_batches_total")
        assert value(each, "pipedec_stage_step_seconds_count") == value(each, "pipedec_stage_steps_total")
        computed, cancelled = (value(each, f"pipedec_stage_{kind}_total") for kind in ("rows", "cancelled_rows"))
        assert computed + cancelled == rows
        # Rows of the last tokens are never committed: as many levels as were in flight, at most, for each request.
        assert useful - sent * (STAGES + 2) <= value(each, "pipedec_stage_useful_rows_total") <= useful
        busy = value(each, "pipedec_stage_seconds_total", state="busy")
        assert busy == pytest.approx(value(each, "pipedec_stage_step_seconds_sum"))
        assert 0 < value(each, "pipedec_stage_useful_seconds_total") <= busy
        assert value(each, "pipedec_stage_seconds_total", state="idle") > 0
        assert value(each, "pipedec_stage_seconds_total", state="unformed") > 0
    for before, after in pairwise(stages):
        assert 0 < value(before, "pipedec_stage_sent_bytes_total") == value(after, "pipedec_stage_received_bytes_total")


def test_the_head_knows_its_stages(pipeline: Pipeline) -> None:
    found, stages = pipeline.scrape("draft"), pipeline.stages()
    assert value(found, "pipedec_head_stages") == value(found, "pipedec_head_stage_present") == STAGES
    assert value(found, "pipedec_head_epoch_live") == 1
    for index, each in enumerate(stages):
        assert 0 <= value(found, "pipedec_head_heartbeat_age_seconds", stage=str(index)) < 30
        assert value(each, "pipedec_stage_epoch") == value(found, "pipedec_head_epoch")
        assert value(each, "pipedec_stage_kv_slots") == value(found, "pipedec_head_kv_slots")
    assert value(found, "pipedec_head_kv_slots_used") == 0
    steps = value(found, "pipedec_head_stage_step_seconds")
    assert value(found, "pipedec_head_plain_token_seconds") == pytest.approx(steps)
    for name in ("epochs_lost", "stale_verdicts", "malformed_messages", "unauthenticated_connections"):
        assert value(found, f"pipedec_head_{name}_total") == 0


def test_no_label_is_unbounded_or_tells_of_a_request(pipeline: Pipeline) -> None:
    told = [*head.families, *requests.families, *requests.responses, *stage.families, *process.families]
    labels = {family.name: family.labels for family in told}
    free = {
        "model_name": MODEL, "stage": r"[01]", "layers": r"\d-\d", "dtype": "float32", "device": "cpu",
        "version": r"[\d.]+", "route": r"unmatched|/[\w/{}:]*", "status": r"\d{3}",
    }  # fmt: skip
    for found in (pipeline.scrape("draft"), *pipeline.stages()):
        for name, metric in found.items():
            for sample in metric.samples:
                for label, text in sample.labels.items() if name in labels else ():
                    values = labels[name].get(label, ())
                    bounded = re.fullmatch(free[label], text) if isinstance(values, str) else text in values
                    assert label == "le" or bounded, sample
                assert not {SECRET, REQUEST_ID} & set(sample.labels.values())


def test_scraping_shows_no_text(pipeline: Pipeline) -> None:
    texts = [answer["choices"][0]["text"] for answer in pipeline.answers]
    for found in (pipeline.scrape("draft"), *pipeline.stages()):
        told = repr(found)
        assert not [text for text in (SECRET, REQUEST_ID, *texts) if text in told]


def events(pipeline: Pipeline) -> list[Event]:
    """The events of all processes so far. Every line of theirs is one."""
    lines = [re.fullmatch(r"(draft|stage \d) \| (.*)\n", line) for line in list(pipeline.up.said)]
    return [json.loads(line[2]) for line in lines if line is not None]


def named(pipeline: Pipeline, event: str) -> list[Event]:
    return [each for each in events(pipeline) if each["event"] == event]


@pytest.fixture(autouse=True)
def all_said(pipeline: Pipeline) -> None:
    """Lines come a moment after what they tell of."""
    until(lambda: len(named(pipeline, "request finished")) == len(pipeline.answers))


def test_every_line_is_an_event_of_a_process(pipeline: Pipeline) -> None:
    for each in events(pipeline):
        assert list(each)[:3] == ["time", "level", "service"]
        assert (each["service"], each.get("stage")) in [("draft", each.get("stage")), ("stage", 0), ("stage", 1)]
        assert each["event"]


def test_the_formation_is_told(pipeline: Pipeline) -> None:
    epoch = value(pipeline.scrape("draft"), "pipedec_head_epoch")
    registered = named(pipeline, "stage registered")
    infos = [each["pipedec_stage_info"].samples[0].labels for each in pipeline.stages()]
    held = [(stage, info["layers"]) for stage, info in enumerate(infos)]
    assert sorted((each["stage"], each["layers"]) for each in registered) == held
    for event, times in (("epoch begun", 1), ("epoch live", 1), ("ready", 1), ("epoch joined", STAGES)):
        assert [each["epoch"] for each in named(pipeline, event)] == [epoch] * times, event
    assert {each["percent"] for each in named(pipeline, "loading") if "percent" in each} >= {100}
    assert len(named(pipeline, "listening")) == 1 + STAGES
    assert not [each for each in events(pipeline) if each["level"] in ("WARNING", "ERROR")]


def test_a_request_is_told_from_its_place_in_the_pipeline_to_its_end(pipeline: Pipeline) -> None:
    epoch, sent = value(pipeline.scrape("draft"), "pipedec_head_epoch"), len(pipeline.answers)
    warm_up, *admitted = named(pipeline, "request admitted")
    assert warm_up["request"] == "warm-up"
    assert [(each["request"], each["epoch"]) for each in admitted] == [(REQUEST_ID, epoch)] * sent
    steps = [each["step"] for each in admitted]
    assert steps == sorted(set(steps))
    assert [each["request"] for each in named(pipeline, "request first token")] == [REQUEST_ID] * sent
    for each, answer in zip(named(pipeline, "request finished"), pipeline.answers, strict=True):
        assert (each["request"], each["reason"], each["tokens"]) == (REQUEST_ID, "length", TOKENS)
        assert each["prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert each["hit_rate"] == answer["pipedec"]["hit_rate"]
        assert 0 <= each["queue_seconds"] <= each["first_token_seconds"] <= each["seconds"]


def test_no_line_has_a_text_of_a_client(pipeline: Pipeline) -> None:
    texts = [answer["choices"][0]["text"] for answer in pipeline.answers]
    said = "".join(pipeline.up.said)
    assert not [text for text in (SECRET, *texts, *(json.dumps(text)[1:-1] for text in texts)) if text in said]
