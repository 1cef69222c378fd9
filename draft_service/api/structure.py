"""Structured output: the form that a client wants answers to have, and the grammar that says so.

`response_format` is OpenAI's, `structured_outputs` vLLM's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from draft_service.api.body import Body, Only, Schema, Text
from draft_service.grammar_trial import Source
from draft_service.json_schema import simplified
from draft_service.tools.grammar import Form
from pipedec.errors import RequestError
from pipedec.model.grammar import choice_grammar, json_grammar, regex_grammar

ANY_OBJECT: dict[str, Any] = {"type": "object"}
MAX_CHOICES = 1024


def _parsed(schema: Any) -> Any:
    """vLLM takes a schema as text too."""
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError("json_invalid_schema", "Input should be a JSON schema: it is not JSON") from error


class AnyText(Body):
    type: Literal["text"]


class JsonObject(Body):
    type: Literal["json_object"]
    json_schema: Annotated[Any, Only()] = Field(None, alias="schema")  # other servers'


class NamedSchema(Body):
    """Answers follow the schema. Keywords that are not supported are refused where it is `strict`, else left out."""

    name: Text
    description: Text | None = None
    json_schema: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchema(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[AnyText | JsonObject | JsonSchema, Field(discriminator="type")]


class StructuredOutputs(Body):
    """One of these."""

    json_schema: Annotated[Schema, BeforeValidator(_parsed)] | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)] | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    structural_tag: Annotated[Any, Only()] = None
    whitespace_pattern: Annotated[Any, Only()] = None
    disable_fallback: Annotated[Any, Only(False, True)] = None  # there is none
    disable_any_whitespace: Annotated[Any, Only(False)] = None
    disable_additional_properties: Annotated[Any, Only(False)] = None


def form_of(response_format: ResponseFormat | None) -> tuple[Form | None, str]:
    """The JSON that answers are to be, None if they are text, and the field that asks for it. Raises `RequestError`."""
    match response_format:
        case JsonObject():
            return Form(ANY_OBJECT, strict=True), "response_format"
        case JsonSchema(json_schema=named):
            field = "response_format.json_schema.schema"
            schema = ANY_OBJECT if named.json_schema is None else named.json_schema
            return Form(simple(schema, field, strict=bool(named.strict)), bool(named.strict)), field
    return None, ""


def simple(schema: Mapping[str, Any], field: str, *, strict: bool) -> dict[str, Any]:
    """The schema as a grammar needs it. Raises `RequestError`."""
    try:
        without: dict[str, Any] = simplified(schema, lenient=not strict)
    except RecursionError as error:
        raise RequestError(f"{field} is nested too deeply", field) from error
    return without


def json_source(schema: Mapping[str, Any], field: str, *, lenient: bool = False) -> tuple[Source, str]:
    try:
        return Source(json_grammar(schema, lenient=lenient)), field
    except ValueError as error:
        raise RequestError(f"{field} cannot be followed: numbers have at most 64 bits ({error})", field) from error


def source_of(form: Form | None, field: str, wanted: StructuredOutputs | None) -> tuple[Source | None, str]:
    """What is asked for, None if nothing is, and the field that asks: a form by `field`, or something else. Raises
    `RequestError`."""
    asked: list[tuple[Source, str]] = []
    if form is not None:
        asked.append(json_source(form.schema, field, lenient=not form.strict))
    if wanted is not None:
        asked += _sources(wanted)
    if len(asked) > 1:
        fields = " and ".join(field for _, field in asked)
        raise RequestError(f"{fields} cannot be combined: an answer has one form", asked[-1][1])
    if not asked:
        return None, ""
    return asked[0]


def _sources(wanted: StructuredOutputs) -> list[tuple[Source, str]]:
    asked = []
    if wanted.json_schema is not None:
        field = "structured_outputs.json"
        asked.append(json_source(simple(wanted.json_schema, field, strict=True), field))
    if wanted.json_object:
        asked.append(json_source(ANY_OBJECT, "structured_outputs.json_object"))
    if wanted.regex is not None:
        asked.append((Source(regex_grammar(wanted.regex)), "structured_outputs.regex"))
    if wanted.choice is not None:
        asked.append((Source(choice_grammar(wanted.choice)), "structured_outputs.choice"))
    if wanted.grammar is not None:
        asked.append((Source(wanted.grammar, "lark or gbnf"), "structured_outputs.grammar"))
    return asked
