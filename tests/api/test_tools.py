"""Tools as OpenAI's client offers them, and sees them called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from draft_service.generation import EngineInfo
from draft_service.grammar_trial import GrammarTrial
from draft_service.text import Tokenizer
from pipedec.metrics.requests import RequestMetrics
from pipedec.model.grammar import Grammars
from tests.api.offered import ASK, CITY, NOW, ROME, TIME, WEATHER, may_be, prompt
from tests.api.scripted import MODEL, ScriptedEngine, served, tokens_of
from tests.tools.templates import FAMILIES


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return FAMILIES["tags, as text"].tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, info=EngineInfo(MODEL, 16384, 258, ((0, 5),)))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer.backend, 258)


@pytest.fixture(scope="module")
def client(engine: ScriptedEngine, tokenizer: Tokenizer) -> Iterator[openai.OpenAI]:
    trial = GrammarTrial(tokenizer.backend, 258)
    app = create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL), trial=trial)
    with trial, served(app) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
            yield client


def test_an_answer_that_calls(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say(f"Let me see.\n{ROME}\n{NOW}")
    choice = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER, TIME]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    calls = choice.message.tool_calls
    assert calls is not None
    told = [(call.type, call.function.name, call.function.arguments) for call in calls if call.type == "function"]
    assert told == [("function", "weather", '{"city": "Rome"}'), ("function", "time", "{}")]
    assert len({call.id for call in calls}) == 2
    assert json.dumps(WEATHER) in prompt(engine)


def test_an_answer_that_calls_as_it_comes(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say(f"Let me see.\n{ROME}\n{NOW}")
    with client.chat.completions.stream(model=MODEL, messages=ASK, tools=[WEATHER, TIME]) as stream:
        events = list(stream)
        choice = stream.get_final_completion().choices[0]
    deltas = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(deltas) == '{"city": "Rome"}{}'
    assert len(deltas) > 10, "piece by piece"
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    calls = choice.message.tool_calls or ()
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", '{"city": "Rome"}'),
        ("time", "{}"),
    ]


def test_an_answer_that_does_not_call(client: openai.OpenAI, engine: ScriptedEngine, grammars: Grammars) -> None:
    engine.say("It is <tool> sunny. ")
    choice = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER], n=2).choices[1]
    assert (choice.finish_reason, choice.message.content) == ("stop", "It is <tool> sunny. ")
    assert choice.message.tool_calls is None
    assert all(may_be(engine, grammars, text) for text in ("", "Hm.", ROME, f"Hm.{ROME}", f"{ROME}\n{ROME}"))
    assert not any(may_be(engine, grammars, text) for text in (NOW, ROME.replace("city", "town"), ROME[:-1], ROME[:12]))


def test_one_that_has_to(client: openai.OpenAI, engine: ScriptedEngine, grammars: Grammars) -> None:
    engine.say(ROME)
    choice = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False
    ).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert may_be(engine, grammars, ROME)
    assert may_be(engine, grammars, NOW)
    assert not any(may_be(engine, grammars, text) for text in ("", "Hm.", f"Hm.{ROME}", f"{ROME}\n{NOW}"))


def test_one_that_has_to_call_this_one(client: openai.OpenAI, engine: ScriptedEngine, grammars: Grammars) -> None:
    engine.say(NOW)
    client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        tools=[WEATHER, TIME],
        tool_choice={"type": "function", "function": {"name": "time"}},
    )
    assert may_be(engine, grammars, NOW)
    assert not may_be(engine, grammars, ROME)
    assert "weather" in prompt(engine), "the conversation's prompts stay alike"


def test_one_that_may_not(client: openai.OpenAI, engine: ScriptedEngine, grammars: Grammars) -> None:
    engine.say("Hm.")
    choice = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER], tool_choice="none", response_format={"type": "text"}
    ).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", "Hm.")
    assert may_be(engine, grammars, "Hm.")
    assert not may_be(engine, grammars, ROME)
    assert "It." in prompt(engine), "the conversation's prompts stay alike"


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 4}], ids=lambda fields: next(iter(fields)))
def test_one_that_may_not_may_be_of_a_given_length(
    client: openai.OpenAI, engine: ScriptedEngine, fields: dict[str, Any]
) -> None:
    """GuideLLM asks that of the turns of its benchmarks that do not call."""
    engine.say("Hm.")
    choice = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER], tool_choice="none", max_tokens=8, extra_body=fields
    ).choices[0]
    assert choice.message.content is not None
    assert choice.message.content.startswith("Hm.")
    assert "It." in prompt(engine)


def test_one_that_has_a_form_if_it_does_not_call(
    client: openai.OpenAI, engine: ScriptedEngine, grammars: Grammars
) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "point", "schema": CITY}}
    engine.say(ROME)
    answer = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER], response_format=form)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert all(may_be(engine, grammars, text) for text in (ROME, '{"city": "x"}'))
    assert not any(may_be(engine, grammars, text) for text in ("Hm.", f"Hm.{ROME}", '{"town": "x"}'))
    client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER], response_format=form, tool_choice="none", max_tokens=3
    )
    assert may_be(engine, grammars, '{"city": "x"}')
    assert not may_be(engine, grammars, ROME)


def test_one_that_may_call_some(client: openai.OpenAI, engine: ScriptedEngine, grammars: Grammars) -> None:
    engine.say(NOW)
    some: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": some}
    client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER, TIME], tool_choice=choice)
    assert [may_be(engine, grammars, text) for text in (NOW, ROME, "Hm.")] == [True, False, False]


def test_stop_strings_are_of_what_is_said(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say(f"Hm.{ROME}")
    asked: dict[str, Any] = {"model": MODEL, "messages": ASK, "tools": [WEATHER], "logprobs": True}
    called = client.chat.completions.create(**asked, stop=["Rome", "\n"]).choices[0]
    assert (called.finish_reason, called.message.content) == ("tool_calls", "Hm.")
    cut = client.chat.completions.create(**asked, stop=["m."]).choices[0]
    assert (cut.finish_reason, cut.message.content, cut.message.tool_calls) == ("stop", "H", None)
    waiting = client.chat.completions.create(**asked, stop=[f"m.{ROME}"], stream=True)
    deltas = [chunk.choices[0].delta for chunk in waiting]
    assert "".join(delta.content or "" for delta in deltas) == "Hm."
    assert next(index for index, delta in enumerate(deltas) if delta.tool_calls) >= max(
        index for index, delta in enumerate(deltas) if delta.content
    ), "what is said comes before what is called"
    assert [len((choice.logprobs.content if choice.logprobs else None) or ()) for choice in (called, cut)] == [
        len(f"Hm.{ROME}"),
        1,
    ]


def test_a_stop_token_in_the_middle_of_a_call(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say(ROME)
    (token,) = tokens_of(engine.tokenizer, b"R")
    choice = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER], extra_body={"stop_token_ids": [token]}
    ).choices[0]
    assert choice.finish_reason == "stop", "the call is not whole"


@pytest.mark.parametrize(
    ("cut", "content", "calls"),
    [
        (len("Hm. <tool_"), "Hm. <tool_", None),
        (len("Hm. <tool_call>\n{"), "Hm.", None),
        (len('Hm. <tool_call>\n{"name": "weather", "arguments": {"ci'), "Hm.", [("weather", '{"ci')]),
    ],
)
def test_one_that_is_cut(
    client: openai.OpenAI, engine: ScriptedEngine, cut: int, content: str, calls: list[tuple[str, str]] | None
) -> None:
    engine.say(f"Hm. {ROME}")
    choice = client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER], max_tokens=cut).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("length", content)
    told = [
        (call.function.name, call.function.arguments)
        for call in choice.message.tool_calls or ()
        if call.type == "function"
    ]
    assert (told or None) == calls


def test_the_conversation_goes_on_with_results(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say(ROME)
    asked: dict[str, Any] = {"model": MODEL, "tools": [WEATHER]}
    message = client.chat.completions.create(messages=ASK, **asked).choices[0].message
    assert message.tool_calls is not None
    before = prompt(engine) + ROME
    engine.say("Sunny.")
    said: Any = message.model_dump(exclude_unset=True)
    result: Any = {
        "role": "tool",
        "tool_call_id": message.tool_calls[0].id,
        "content": [{"type": "text", "text": "sun"}],
    }
    client.chat.completions.create(messages=[*ASK, said, result], **asked)
    assert prompt(engine).startswith(before), "as it was said, so that nothing is computed again"
    assert "sun" in prompt(engine).removeprefix(before)


def test_a_tool_may_have_found_nothing(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    """LangGraph sends an empty list that a tool returns as it is."""
    engine.say("Hm.")
    said: Any = call()["messages"]
    result: Any = {"role": "tool", "tool_call_id": "a", "content": []}
    client.chat.completions.create(model=MODEL, messages=[*ASK, *said, result], tools=[WEATHER])
    assert prompt(engine).endswith("tool\nassistant\n")


def call(**fields: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": "{}"} | fields
    return {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]}]}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "x", **fields}}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (tool(name="a b"), "tools.0.function.name"),
        (tool(parameters={"type": "array"}), "tools.0.function.parameters.type"),
        (tool(parameters="{}"), "tools.0.function.parameters"),
        (
            tool(strict=True, parameters={"properties": {"a": {"type": "array", "uniqueItems": True}}}),
            "tools.0.function.parameters",
        ),
        (tool(parameters={"$ref": "#/nowhere"}), "tools.0.function.parameters"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tools": [TIME] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": "always"}, "tool_choice"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        (
            {
                "tools": [TIME],
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "any"}}},
            },
            "response_format.json_schema.schema",
        ),
        ({"tools": [TIME], "extra_body": {"structured_outputs": {"regex": "a"}}}, "structured_outputs.regex"),
        ({"tools": [TIME], "extra_body": {"min_tokens": 2}}, "min_tokens"),
        ({"tools": [TIME], "extra_body": {"ignore_eos": True}}, "ignore_eos"),
        (call(arguments='"\\ud800"'), "messages.0.tool_calls.0.function.arguments"),
        (call(arguments="[" * 100_000), "messages.0.tool_calls.0.function.arguments"),
        (call(arguments={}), "messages.0.tool_calls.0.function.arguments"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": call()["messages"][0]["tool_calls"]}]},
            "messages.0.tool_calls",
        ),
    ],
)
def test_what_cannot_be(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": MODEL, "messages": ASK} | fields)
    assert refused.value.param == param, refused.value.message


def test_other_arguments_may_be_where_the_schema_says_so(
    client: openai.OpenAI, engine: ScriptedEngine, grammars: Grammars
) -> None:
    engine.say(NOW)
    more = ROME.replace('"Rome"', '"Rome", "more": 1')
    for parameters, possible in ((CITY, False), (CITY | {"additionalProperties": True}, True)):
        function = {"name": "weather", "parameters": parameters}
        client.chat.completions.create(model=MODEL, messages=ASK, tools=[{"type": "function", "function": function}])  # type: ignore[typeddict-item, list-item]
        assert may_be(engine, grammars, more) == possible


def test_patterns_that_look_around_are_left_out_if_not_strict(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    """As libraries write them for addresses and numbers."""
    engine.say(NOW)
    around = "^(?!\\.)[a-z.]+@x$"
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": around}},
        "patternProperties": {around: {}},
    }
    for strict in (False, True):
        parameters = {"type": "object", "properties": {"to": schema}, "required": ["to"]}
        asked: dict[str, Any] = {"model": MODEL, "messages": ASK, **tool(parameters=parameters, strict=strict)}
        if strict:
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(**asked)
        else:
            client.chat.completions.create(**asked)


def test_required_arguments_may_be_others_than_those_listed(
    client: openai.OpenAI, engine: ScriptedEngine, grammars: Grammars
) -> None:
    engine.say(NOW)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["more"]}
    function: Any = {"name": "weather", "parameters": parameters}
    client.chat.completions.create(model=MODEL, messages=ASK, tools=[{"type": "function", "function": function}])
    assert may_be(engine, grammars, ROME.replace('"city": "Rome"', '"more": 1'))


def test_every_tool_is_tried_though_text_may_come_first(client: openai.OpenAI) -> None:
    """The trial of a grammar goes a short way, which text could fill."""
    many = {"type": "object", "properties": {f"p{index}": {"type": "integer"} for index in range(500)}}
    function: Any = {"name": "weather", "parameters": many}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=ASK, tools=[TIME, {"type": "function", "function": function}]
        )
    assert refused.value.param == "tools.1.function.parameters"


def test_arguments_that_were_cut_go_back(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("Hm.")
    messages: Any = [*ASK, *call(arguments='{"city": "Ro')["messages"], *ASK]
    client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert '{"arguments": "{\\"city\\": \\"Ro"}' in prompt(engine)


def test_what_only_people_read_costs_no_grammar(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    """Properties may have the names of such keywords."""
    engine.say(NOW)
    title = {"type": "string", "title": "A title", "description": "long " * 50, "enum": ["title"]}
    parameters = {"type": "object", "properties": {"title": title}, "required": ["title"]}
    function: Any = {"name": "name_it", "parameters": parameters}
    client.chat.completions.create(model=MODEL, messages=ASK, tools=[{"type": "function", "function": function}])
    grammar = engine.requests[-1].sampling.grammar
    assert '"properties":{"title":{"type":"string","enum":["title"]}}' in grammar
    assert '"required":["title"]' in grammar
    assert "long" in prompt(engine)
