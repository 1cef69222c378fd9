"""From what a request asks of its answers to the grammar that they follow: a form, calls of tools, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from draft_service.api.openai_types import GenerationBody
from draft_service.api.structure import json_source, schema_of, source_of
from draft_service.grammar_trial import GrammarTrial, Source
from draft_service.json_schema import simplified
from draft_service.tools.calling import ToolCalling
from draft_service.tools.grammar import Calls, Function, Offer
from pipedec.errors import RequestError
from pipedec.sampling_params import MAX_GRAMMAR


class Forms:
    """For one model. Without a `trial` of grammars nothing can be asked of answers. Raises `RequestError` for what
    cannot be followed."""

    def __init__(self, calling: ToolCalling, trial: GrammarTrial | None) -> None:
        self._calling, self._trial = calling, trial

    async def grammar(self, body: GenerationBody, offer: Offer | None, prompt: Sequence[int], *, can_end: bool) -> str:
        """What answers to the prompt follow; empty if anything will do. Whether there are end tokens (`can_end`)."""
        source, field = source_of(body.response_format, body.structured_outputs)
        if offer is not None and source is not None and offer.calls is Calls.NONE:
            offer = None
        if source is None and offer is None:
            return ""
        what = "a given form" if offer is None else "tools"
        if self._trial is None:
            raise RequestError(f"this model's tokenizer cannot be used for {what}", field or "tools")
        if body.ignore_eos or not can_end:
            raise RequestError(f"an answer with {what} ends with an end token", "ignore_eos")
        if body.min_tokens:
            raise RequestError(f"min_tokens cannot be combined with {what}: the answer may be shorter", "min_tokens")
        if offer is None:
            assert source is not None
            return await self._tried(source, field)
        if source is not None:
            offer = _with_form(offer, body, field)
        return await self._tried_calls(offer, prompt)

    async def _tried_calls(self, offer: Offer, prompt: Sequence[int]) -> str:
        """Each function's arguments by themselves too: a trial goes a short way, and perhaps none of theirs."""
        if offer.calls is not Calls.NONE:
            names = [tool["function"]["name"] for tool in offer.tools]
            for function in offer.functions:
                field = f"tools.{names.index(function.name)}.function.parameters"
                await self._tried(*json_source(function.parameters, field, lenient=not function.strict))
        return await self._tried(Source(self._calling.grammar(offer, prompt)), "tools")

    async def _tried(self, source: Source, field: str) -> str:
        assert self._trial is not None
        if (size := len(source.text.encode())) > MAX_GRAMMAR:
            raise RequestError(
                f"{field} is too long: its grammar has {size} bytes, of at most {MAX_GRAMMAR}; leave something out",
                field,
            )
        outcome = await self._trial.outcome(source)
        if outcome.refusal:
            raise RequestError(f"{field} cannot be followed: {outcome.refusal}", field)
        return outcome.grammar


def _with_form(offer: Offer, body: GenerationBody, field: str) -> Offer:
    """Answers that do not call have the form."""
    form = schema_of(body.response_format)
    if form is None or body.structured_outputs is not None:
        raise RequestError(f"tools can be combined with a JSON response_format, not with {field}", field)
    schema, strict = form
    return replace(offer, json=Function("", simplified(schema, lenient=not strict), strict))
