"""Tools as clients describe them, ask for them and tell of them; OpenAI's fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from draft_service.api.body import Body, Schema, Text
from draft_service.tools.calling import Offer
from draft_service.tools.grammar import Function
from pipedec.errors import RequestError

MAX_TOOLS = 128
# Keywords of a JSON schema that say nothing of what follows it; those whose value maps names to schemas.
ANNOTATIONS = {"description", "title", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"}
MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
COMBINED = {"$ref", "allOf", "anyOf", "oneOf"}
VALUES = {"enum", "const", "required", "type"}


def _object(arguments: str) -> str:
    try:
        is_object = isinstance(json.loads(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise PydanticCustomError("arguments", "Input should be a JSON object, as text")
    return arguments or "{}"


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


class CalledFunction(Body):
    name: Name
    arguments: Annotated[Text, AfterValidator(_object)]


class ToolCall(Body):
    """A call that an answer of before had."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


def offer_of(tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> Offer | None:
    """None where nothing may be called. Raises `RequestError`."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice needs tools", "tool_choice")
        return None
    if choice == "none":
        return None
    functions = {tool.function.name: tool.function for tool in tools}
    if len(functions) < len(tools):
        raise RequestError("two tools have the same name", "tools")
    offered = [_function(index, tool.function) for index, tool in enumerate(tools)]
    if isinstance(choice, NamedTool):
        offered = [each for each in offered if each.name == choice.function.name]
        if not offered:
            raise RequestError(f"there is no tool {choice.function.name!r} in tools", "tool_choice.function.name")
    return Offer(
        tuple(_told(tool.function) for tool in tools),
        tuple(offered),
        required=choice not in (None, "auto"),
        several=parallel is not False and not isinstance(choice, NamedTool),
    )


def _told(function: FunctionBody) -> dict[str, Any]:
    """As chat templates read it."""
    description = {} if function.description is None else {"description": function.description}
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": function.name, **description, "parameters": parameters}}


def _function(index: int, body: FunctionBody) -> Function:
    field = f"tools.{index}.function.parameters"
    parameters = {"type": "object"} | ({"properties": {}} if body.parameters is None else body.parameters)
    if parameters["type"] != "object":
        raise RequestError("the parameters of a function are of type object", f"{field}.type")
    if "properties" in parameters and not COMBINED & parameters.keys():
        # A function has no others, unless it says that it may, and small models like to make some up.
        parameters = {"additionalProperties": False} | parameters
    try:
        return Function(body.name, _bare(parameters), bool(body.strict))
    except RecursionError as error:
        raise RequestError("the schema is nested too deeply", field) from error


def _bare(schema: Any) -> Any:
    """A schema without its annotations."""
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        keyword: {name: _bare(each) for name, each in value.items()}
        if keyword in MAPS and isinstance(value, Mapping)
        else value
        if keyword in VALUES
        else _bare(value)
        for keyword, value in schema.items()
        if keyword not in ANNOTATIONS
    }
