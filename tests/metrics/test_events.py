"""What a real pipeline logs: an object per line, every event of a request and of the formation, and no text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.metrics.conftest import REQUEST_ID, SECRET, STAGES, TOKENS, Pipeline, value
from tests.sockets import until

Event = dict[str, Any]


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
