"""Tools as clients describe them, ask for them and tell of them; OpenAI's fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from draft_service.api.body import Body, Schema, Text, encodable
from draft_service.api.structure import simple
from draft_service.tools.grammar import Calls, Function, Offer
from pipedec.errors import RequestError

MAX_TOOLS = 128
_COMBINED = {"$ref", "allOf", "anyOf", "oneOf"}


def _decodable(arguments: str) -> str:
    """Arguments are JSON for a chat template; those that were cut are text."""
    try:
        said = json.loads(arguments)
    except RecursionError as error:
        raise PydanticCustomError("recursion", "Input is nested too deeply") from error
    except ValueError:
        return arguments
    encodable(said)
    return arguments


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]


class FunctionBody(Body):
    """Arguments are an object that follows `parameters`. Keywords that are not supported are refused where it is
    `strict`, else left out."""

    name: Name
    description: Text | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionBody


class NamedFunction(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class ToolsAllowed(Body):
    """Some of `tools`."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class CalledFunction(Body):
    name: Name
    arguments: Annotated[Text, AfterValidator(_decodable)]


class ToolCall(Body):
    """A call that an answer of before had."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | Annotated[NamedTool | ToolsAllowed, Field(discriminator="type")]


def offer_of(tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> Offer | None:
    """None where nothing is offered. Raises `RequestError`."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice needs tools", "tool_choice")
        return None
    functions = {tool.function.name: _function(index, tool.function) for index, tool in enumerate(tools)}
    if len(functions) < len(tools):
        raise RequestError("two tools have the same name", "tools")
    several, calls, chosen = parallel is not False, Calls.POSSIBLE, list(functions)
    match choice:
        case "none":
            calls = Calls.NONE
        case "required":
            calls = Calls.REQUIRED
        case NamedTool(function=named):
            several, calls, chosen = False, Calls.REQUIRED, [named.name]
        case ToolsAllowed(allowed_tools=allowed):
            chosen = [each.function.name for each in allowed.tools]
            calls = Calls.REQUIRED if allowed.mode == "required" else calls
    if strangers := [name for name in chosen if name not in functions]:
        raise RequestError(f"there is no tool {strangers[0]!r} in tools", "tool_choice")
    told = tuple(_told(tool.function) for tool in tools)
    return Offer(told, tuple(functions[name] for name in dict.fromkeys(chosen)), calls, several)


def _told(function: FunctionBody) -> dict[str, Any]:
    """As chat templates read it, of which many want all fields."""
    parameters = function.parameters or {"type": "object", "properties": {}}
    described = {"name": function.name, "description": function.description or "", "parameters": parameters}
    return {"type": "function", "function": described}


def _function(index: int, body: FunctionBody) -> Function:
    field = f"tools.{index}.function.parameters"
    parameters = {"type": "object"} | ({"properties": {}} if body.parameters is None else body.parameters)
    if parameters["type"] != "object":
        raise RequestError("the parameters of a function are of type object", f"{field}.type")
    if _is_complete(parameters):
        # A function has no others, unless it says that it may, and small models like to make some up.
        parameters = {"additionalProperties": False} | parameters
    strict = bool(body.strict)
    return Function(body.name, simple(parameters, field, strict=strict), strict)


def _is_complete(parameters: Mapping[str, Any]) -> bool:
    """Whether all arguments that may be are listed."""
    listed, required = parameters.get("properties"), parameters.get("required", [])
    if not isinstance(listed, Mapping) or not isinstance(required, list) or _COMBINED & parameters.keys():
        return False
    return all(name in listed for name in required if isinstance(name, str))
