"""Structured output: the form that a client wants answers to have, and the grammar that says so.

`response_format` is OpenAI's, `structured_outputs` vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from draft_service.api.body import Body, Only, Text, encodable
from pipedec.errors import RequestError
from pipedec.model.grammar import choice_grammar, context_free_grammar, json_grammar, regex_grammar
from pipedec.sampling_params import MAX_GRAMMAR

ANY_OBJECT: dict[str, Any] = {"type": "object"}
MAX_CHOICES = 1024

Schema = Annotated[dict[str, Any], AfterValidator(encodable)]


class AnyText(Body):
    type: Literal["text"]


class JsonObject(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    """`strict` or not, answers follow the schema."""

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

    json_schema: Schema | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)] | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    structural_tag: Annotated[Any, Only()] = None
    whitespace_pattern: Annotated[Any, Only()] = None
    disable_any_whitespace: Annotated[Any, Only(False)] = None
    disable_additional_properties: Annotated[Any, Only(False)] = None


def grammar_of(response_format: ResponseFormat | None, wanted: StructuredOutputs | None) -> tuple[str, str]:
    """The grammar of what is asked for, empty if nothing is, and the field that asks. Raises `RequestError`."""
    asked: list[tuple[str, str]] = []
    match response_format:
        case JsonObject():
            asked.append((json_grammar(ANY_OBJECT), "response_format"))
        case JsonSchema(json_schema=named):
            schema = ANY_OBJECT if named.json_schema is None else named.json_schema
            asked.append((json_grammar(schema), "response_format.json_schema.schema"))
    if wanted is not None:
        asked += [(grammar, f"structured_outputs.{field}") for grammar, field in _grammars(wanted)]
    if len(asked) > 1:
        fields = " and ".join(field for _, field in asked)
        raise RequestError(f"{fields} cannot be combined: an answer has one form", asked[-1][1])
    grammar, field = asked[0] if asked else ("", "")
    if len(grammar) > MAX_GRAMMAR:
        raise RequestError(f"{field} is too long: {len(grammar)} characters, of at most {MAX_GRAMMAR}", field)
    return grammar, field


def _grammars(wanted: StructuredOutputs) -> list[tuple[str, str]]:
    asked = []
    if wanted.json_schema is not None:
        asked.append((json_grammar(wanted.json_schema), "json"))
    if wanted.json_object:
        asked.append((json_grammar(ANY_OBJECT), "json_object"))
    if wanted.regex is not None:
        asked.append((regex_grammar(wanted.regex), "regex"))
    if wanted.choice is not None:
        asked.append((choice_grammar(wanted.choice), "choice"))
    if wanted.grammar is not None:
        try:
            asked.append((context_free_grammar(wanted.grammar), "grammar"))
        except ValueError as error:
            raise RequestError(str(error), "structured_outputs.grammar") from error
    return asked
