"""Tools as they are offered in OpenAI's Responses, and called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import FunctionToolParam, Response, ResponseFunctionToolCall
from pydantic import TypeAdapter

from draft_service.api.responses.reply_types import ResponseEvent, ResponseResource
from pipedec.model.grammar import Grammars
from tests.api.another import Another, another
from tests.api.offered import CITY, NOW, ROME, may_be, prompt
from tests.api.scripted import MODEL, ScriptedEngine
from tests.tools.templates import FAMILIES

WEATHER: FunctionToolParam = {
    **{"type": "function", "name": "weather", "description": "It."},
    **{"parameters": CITY, "strict": True},
}
TIME: Any = {"type": "function", "name": "time"}
ASK = "What is the weather in Rome?"
UNIQUE = {"properties": {"a": {"type": "array", "items": {}, "uniqueItems": True}}}


@pytest.fixture(scope="module")
def model() -> Iterator[Another]:
    with another(FAMILIES["tags, as text"].tokenizer()) as model:
        yield model


@pytest.fixture
def engine(model: Another) -> ScriptedEngine:
    return model.engine


@pytest.fixture(scope="module")
def grammars(model: Another) -> Grammars:
    return Grammars(model.engine.tokenizer.backend, 262)


def ask(model: Another, **fields: Any) -> Response:
    asked: dict[str, Any] = {"model": MODEL, "input": ASK, "tools": [WEATHER, TIME], **fields}
    response = model.client.responses.create(**asked)
    assert isinstance(response, Response)
    Response.model_validate(response.to_dict())
    TypeAdapter(ResponseResource).validate_python(response.to_dict(), extra="forbid")
    return response


def calls(response: Response) -> list[tuple[str, str, str | None]]:
    called = [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]
    return [(call.name, call.arguments, call.status) for call in called]


def test_an_answer_that_calls(model: Another, engine: ScriptedEngine) -> None:
    model.say(f"Let me see.\n{ROME}\n{NOW}")
    response = ask(model)
    assert (response.status, response.output_text) == ("completed", "Let me see.")
    assert calls(response) == [("weather", '{"city": "Rome"}', "completed"), ("time", "{}", "completed")]
    assert len({item.id for item in response.output}) == 3
    assert [tool.type == "function" and tool.name for tool in response.tools] == ["weather", "time"]
    assert response.tool_choice == "auto"
    assert '"description": "It."' in prompt(engine)


def test_an_answer_that_only_calls_has_no_message(model: Another) -> None:
    model.say(ROME)
    assert [item.type for item in ask(model).output] == ["function_call"]


@pytest.mark.parametrize("text", ["Let me see.", ""])
def test_an_answer_that_calls_as_it_comes(model: Another, text: str) -> None:
    model.say(f"{text}{ROME}\n{NOW}")
    asked: Any = {"model": MODEL, "input": ASK, "tools": [WEATHER, TIME], "stream": True}
    events = list(model.client.responses.create(**asked))
    for each in events:
        type(each).model_validate(each.to_dict())
        TypeAdapter(ResponseEvent).validate_python(each.to_dict(), extra="forbid")
    begun = [(each.output_index, each.item.type) for each in events if each.type == "response.output_item.added"]
    ended = [(each.output_index, each.item.type) for each in events if each.type == "response.output_item.done"]
    assert begun == ended == list(enumerate([*(["message"] if text else []), "function_call", "function_call"]))
    deltas = [each.delta for each in events if each.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Rome"}{}'
    assert len(deltas) > 10, "piece by piece"
    done = [each.arguments for each in events if each.type == "response.function_call_arguments.done"]
    assert done == ['{"city": "Rome"}', "{}"]


def test_the_clients_own_stream_puts_it_together(model: Another) -> None:
    model.say(f"Hm.{ROME}")
    with model.client.responses.stream(model=MODEL, input=ASK, tools=[WEATHER]) as stream:
        response = stream.get_final_response()
    assert response.output_text == "Hm."
    (call,) = (item for item in response.output if item.type == "function_call")
    assert call.parsed_arguments == {"city": "Rome"}


def test_the_conversation_goes_on_with_results(model: Another, engine: ScriptedEngine) -> None:
    model.say(f"Hm.\n{ROME}\n{NOW}")
    response = ask(model)
    before = prompt(engine) + f"Hm.\n{ROME}\n{NOW}"
    model.say("Sunny.")
    ids = [item.call_id for item in response.output if item.type == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": ids[1], "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "function_call_output", "call_id": ids[0], "output": "sun"},
    ]
    said = ask(model, input=[{"role": "user", "content": ASK}, *response.output, *results])
    assert said.output_text == "Sunny."
    assert prompt(engine).startswith(before), "as it was said, so that nothing is computed again"
    behind = prompt(engine).removeprefix(before)
    assert behind.index("sun") < behind.index("noon"), "in the order of the calls"


def test_what_was_said_before_calls_may_be_sent_behind_them(model: Another, engine: ScriptedEngine) -> None:
    """As Haystack does: it is still one turn, and results come after calls."""
    model.say("Hm.")
    call = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Rome"}'}
    result = {"type": "function_call_output", "call_id": "a", "output": "sun"}
    ask(model, input=[{"role": "user", "content": ASK}, call, {"role": "assistant", "content": "I look."}, result])
    assert f"assistant\nI look.\n{ROME}tool\nsun" in prompt(engine)


def test_a_tool_may_have_found_nothing(model: Another, engine: ScriptedEngine) -> None:
    model.say("Hm.")
    call = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "a", "output": []}
    ask(model, input=[{"role": "user", "content": ASK}, call, result])
    assert prompt(engine).endswith("tool\nassistant\n")


def test_calls_of_two_turns_are_two_turns(model: Another, engine: ScriptedEngine) -> None:
    model.say("Hm.")
    call = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Rome"}'}
    result = {"type": "function_call_output", "call_id": "a", "output": "sun"}
    ask(model, input=[{"role": "user", "content": ASK}, call, result, call, result])
    turn = f"assistant\n{ROME}tool\nsun"
    assert turn + turn in prompt(engine)


@pytest.mark.parametrize(
    ("choice", "possible"),
    [
        ({"tool_choice": "auto"}, {"Hm.", ROME, NOW, f"{ROME}\n{NOW}"}),
        ({"tool_choice": "none"}, {"Hm."}),
        ({"tool_choice": "required"}, {ROME, NOW, f"{ROME}\n{NOW}"}),
        ({"tool_choice": "required", "parallel_tool_calls": False}, {ROME, NOW}),
        ({"tool_choice": {"type": "function", "name": "time"}}, {NOW}),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "time"}]}},
            {"Hm.", NOW},
        ),
    ],
)
def test_what_may_be_called(
    model: Another, engine: ScriptedEngine, grammars: Grammars, choice: dict[str, Any], possible: set[str]
) -> None:
    model.say(next(iter(sorted(possible))))
    response = ask(model, **choice)
    answers = ("Hm.", ROME, NOW, f"{ROME}\n{NOW}")
    assert {text for text in answers if may_be(engine, grammars, text)} == possible
    asked = response.tool_choice
    assert (asked if isinstance(asked, str) else asked.to_dict()) == choice["tool_choice"]
    assert response.parallel_tool_calls == choice.get("parallel_tool_calls", True)


def test_a_call_that_is_cut_is_incomplete(model: Another) -> None:
    said = 'Hm. <tool_call>\n{"name": "weather", "arguments": {"ci'
    model.say(f"Hm. {ROME}")
    response = ask(model, max_output_tokens=len(said))
    assert (response.status, response.output_text) == ("incomplete", "Hm.")
    assert calls(response) == [("weather", '{"ci', "incomplete")]


def test_calls_have_no_log_probabilities(model: Another) -> None:
    model.say(f"Hm.\n{ROME}")
    message = ask(model, include=["message.output_text.logprobs"]).output[0]
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    assert "".join(token.token for token in message.content[0].logprobs or ()) == "Hm."


def test_one_that_has_a_form_if_it_does_not_call(model: Another, engine: ScriptedEngine, grammars: Grammars) -> None:
    model.say('{"city": "x"}')
    text: Any = {"format": {"type": "json_schema", "name": "place", "schema": CITY}}
    assert ask(model, text=text).output_text == '{"city": "x"}'
    assert [may_be(engine, grammars, text) for text in (ROME, '{"city": "x"}', "Hm.")] == [True, True, False]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"tools": [TIME, TIME | {"name": "x", "parameters": {"$ref": "#/nowhere"}}]},
            "tools.1.parameters",
            "tools.1.parameters cannot be followed",
        ),
        ({"tools": [TIME | {"strict": True, "parameters": UNIQUE}]}, "tools.0.parameters", "uniqueItems"),
        ({"extra_body": {"min_tokens": 2}}, "min_tokens", "tools"),
        ({"extra_body": {"structured_outputs": {"regex": "a"}}}, "structured_outputs.regex", "a JSON text.format"),
    ],
)
def test_what_cannot_be(model: Another, fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(model, **fields)
    assert refused.value.param == param, refused.value.message
    assert words in refused.value.message
