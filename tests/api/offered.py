"""Tools for tests to offer, calls of them, and what an engine was asked for."""

from __future__ import annotations

from typing import Any

from openai.types.chat import ChatCompletionMessageParam

from pipedec.model.grammar import Grammars
from tests.api.scripted import ScriptedEngine

CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "It.", "parameters": CITY}}
TIME: Any = {"type": "function", "function": {"name": "time"}}
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Rome?"}]
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'


def may_be(engine: ScriptedEngine, grammars: Grammars, text: str) -> bool:
    """Whether the latest request's answer may be this text."""
    request, tokenizer = engine.requests[-1], engine.tokenizer
    matcher = grammars.matcher(request.sampling.grammar, request.end_tokens)
    matcher.consume(tokenizer.encode(text))
    allowed = matcher.allowed()
    return not matcher.error and allowed is not None and bool(allowed[list(request.end_tokens)].all())


def prompt(engine: ScriptedEngine) -> str:
    return engine.tokenizer.decode(engine.requests[-1].prompt)
