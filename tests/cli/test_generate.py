"""What `pipedec generate` asks an endpoint for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import CONTEXT, MODEL, ScriptedEngine, byte_tokenizer, served
from tests.cli.test_commands import run

LONG = "x" * (CONTEXT - 48)  # of a context that is shorter than any default would be


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.say("Hi!")
    return engine


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    tokenizer = byte_tokenizer()
    with served(create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL))) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_an_answer_may_take_what_the_context_has_room_for(engine: ScriptedEngine, url: str) -> None:
    code, out, err = run("generate", LONG, "--url", url)
    assert (code, out) == (0, "Hi!\n"), err
    (request,) = engine.requests
    assert len(request.prompt) + request.max_tokens == CONTEXT


def test_fewer_tokens_can_be_asked_for(engine: ScriptedEngine, url: str) -> None:
    assert run("generate", LONG, "--url", url, "--max-tokens", "2")[:2] == (0, "Hi\n")


@pytest.mark.parametrize("options", [(), ("--max-tokens", "49")])
def test_where_too_many_were_asked_for_the_option_is_named(url: str, options: tuple[str, ...]) -> None:
    code, out, err = run("generate", "--raw", LONG, "--url", url, *options)
    assert (code, out) == (1, "")
    assert "the model's context is 128 tokens" in err
    assert "; ask for fewer with --max-tokens" in err
    assert run("generate", "--raw", LONG, "--url", url, "--max-tokens", "48")[:2] == (0, "Hi!\n")


def test_a_prompt_that_does_not_fit_is_told_no_option(url: str) -> None:
    code, _, err = run("generate", "x" * CONTEXT, "--url", url)
    assert code == 1
    assert "the model's context is 128 tokens" in err
    assert "--max-tokens" not in err
