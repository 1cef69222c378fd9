"""What `pipedec generate` asks an endpoint for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tokenizers import AddedToken

from draft_service.api import create_app
from draft_service.grammar_trial import GrammarTrial
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
    tokenizer = byte_tokenizer(marks=[AddedToken("<think>"), AddedToken("</think>")])
    trial = GrammarTrial(tokenizer.backend, engine.info.vocab_size)
    metrics = RequestMetrics(CollectorRegistry(), MODEL)
    with trial, served(create_app(engine, tokenizer, metrics, trial=trial)) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_an_answer_may_take_what_the_context_has_room_for(engine: ScriptedEngine, url: str) -> None:
    code, out, err = run("generate", LONG, "--url", url)
    assert (code, out) == (0, "Hi!\n"), err
    (request,) = engine.requests
    assert len(request.prompt) + request.max_tokens == CONTEXT


def test_what_a_model_reasons_is_no_part_of_the_answer(engine: ScriptedEngine, url: str) -> None:
    engine.say("<think>\nHm.\n</think>\n\nYes.")
    code, out, err = run("generate", "Why?", "--url", url)
    assert (code, out) == (0, "Yes.\n")
    assert err.startswith("Hm.\n\n")


def test_fewer_tokens_can_be_asked_for(engine: ScriptedEngine, url: str) -> None:
    assert run("generate", LONG, "--url", url, "--max-tokens", "2")[:2] == (0, "Hi\n")


@pytest.mark.parametrize("options", [(), ("--max-tokens", "49")])
def test_where_too_many_were_asked_for_the_option_is_named(url: str, options: tuple[str, ...]) -> None:
    code, out, err = run("generate", "--raw", LONG, "--url", url, *options)
    assert (code, out) == (1, "")
    assert "maximum context length is 128 tokens" in err
    assert "; ask for fewer with --max-tokens" in err
    assert run("generate", "--raw", LONG, "--url", url, "--max-tokens", "48")[:2] == (0, "Hi!\n")


def test_a_prompt_that_does_not_fit_is_told_no_option(url: str) -> None:
    code, _, err = run("generate", "x" * CONTEXT, "--url", url)
    assert code == 1
    assert "maximum context length is 128 tokens" in err
    assert "--max-tokens" not in err


def test_an_answer_can_be_kept_to_a_schema(engine: ScriptedEngine, url: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "array", "items": {"type": "integer"}}))
    assert run("generate", "x", "--url", url, "--schema", str(schema))[0] == 0
    assert '"items":{"type":"integer"}' in engine.requests[0].sampling.grammar


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[]", "response_format.json_schema.schema: Input should be a valid dictionary"),
        ('{"type": "strin"}', "Invalid type: strin"),
    ],
)
def test_a_schema_that_is_none_is_told(url: str, tmp_path: Path, content: str | None, reason: str) -> None:
    schema = tmp_path / "schema.json"
    if content is not None:
        schema.write_text(content)
    code, out, err = run("generate", "x", "--url", url, "--schema", str(schema))
    assert (code, out) == (1, "")
    assert reason in " ".join(err.split())
