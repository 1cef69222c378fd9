"""From what a request asks of its answers to the grammar that they follow: a form, calls of tools, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from draft_service.api.openai_types import GenerationBody
from draft_service.api.structure import form_of, json_source, source_of
from draft_service.grammar_trial import GrammarTrial, Source
from draft_service.reasoning.reasoner import Reasoner
from draft_service.tools.calling import ToolCalling
from draft_service.tools.grammar import Calls, Offer
from pipedec.errors import RequestError

MAX_SOURCE = 2**16  # bytes; what is said of reasoning comes on top, and a fifth for quoting all in it


class Asked(NamedTuple):
    """What answers follow, empty if anything will do, and which calls they may have."""

    grammar: str
    offer: Offer | None


class Forms:
    """For one model. Without a `trial` of grammars nothing can be asked of answers. Raises `RequestError` for what
    cannot be followed."""

    def __init__(self, calling: ToolCalling, reasoner: Reasoner, trial: GrammarTrial | None) -> None:
        self._calling, self._reasoner, self._trial = calling, reasoner, trial

    async def asked(
        self, body: GenerationBody, offer: Offer | None, prompt: Sequence[int] | None, *, can_end: bool
    ) -> Asked:
        """Of answers to the prompt of a chat, None if it is none: only in chats is reasoned. Whether there are end
        tokens (`can_end`)."""
        form, field = form_of(body.response_format)
        source, field = source_of(form, field, body.structured_outputs)
        # What would only keep an answer from calling gives way to what else is asked of it.
        has_other = source is not None or body.ignore_eos or body.min_tokens
        if has_other and offer is not None and offer.calls is Calls.NONE:
            offer = None
        if source is None and offer is None:
            return Asked("", None)
        what = "a given form" if offer is None else "tools"
        if self._trial is None:
            raise RequestError(f"this model's tokenizer cannot be used for {what}", field or "tools")
        if body.ignore_eos or not can_end:
            raise RequestError(f"an answer with {what} ends with an end token", "ignore_eos")
        if body.min_tokens:
            raise RequestError(f"min_tokens cannot be combined with {what}: the answer may be shorter", "min_tokens")
        grammar = ""
        if source is not None:
            _check_size(source, field)
            grammar = await self._tried(source, field)
        if offer is None:
            whole = self._reasoned(grammar, prompt, is_free=False)
            return Asked(grammar if whole == grammar else await self._tried(Source(whole), field), None)
        if source is not None and offer.calls is Calls.POSSIBLE:  # an answer that has to call has no form
            if form is None:
                raise RequestError(f"tools can be combined with a JSON response_format, not with {field}", field)
            offer = replace(offer, form=form)
        return Asked(await self._calls(offer, prompt), offer if offer.calls is not Calls.NONE else None)

    async def _calls(self, offer: Offer, prompt: Sequence[int] | None) -> str:
        """Each function's arguments are tried alone too: a trial goes a short way, and perhaps none of theirs."""
        grammar = self._calling.grammar(offer)
        _check_size(Source(grammar), "tools")
        if offer.calls is not Calls.NONE:
            names = [tool["function"]["name"] for tool in offer.tools]
            for function in offer.functions:
                field = f"tools.{names.index(function.name)}.function.parameters"
                await self._tried(*json_source(function.parameters, field, lenient=not function.strict))
        is_free = offer.calls is not Calls.REQUIRED and offer.form is None
        return await self._tried(Source(self._reasoned(grammar, prompt, is_free=is_free)), "tools")

    def _reasoned(self, grammar: str, prompt: Sequence[int] | None, *, is_free: bool) -> str:
        """With what the model reasons before."""
        return grammar if prompt is None else self._reasoner.grammar(grammar, prompt, is_free=is_free)

    async def _tried(self, source: Source, field: str) -> str:
        assert self._trial is not None
        outcome = await self._trial.outcome(source)
        if outcome.refusal:
            raise RequestError(f"{field} cannot be followed: {outcome.refusal}", field)
        return outcome.grammar


def _check_size(source: Source, field: str) -> None:
    if (size := len(source.text.encode())) > MAX_SOURCE:
        raise RequestError(
            f"{field} is too long: its grammar has {size} bytes, of at most {MAX_SOURCE}; leave something out", field
        )
