"""What one sequence says: its token events in, certain text out. Pure: no engine, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from draft_service.generation import FinishReason, TokenEvent
from draft_service.reasoning.scanner import ReasoningScanner
from draft_service.text import Detokenizer, StopStrings, Tokenizer
from draft_service.tools.scanner import CallDelta, CallScanner
from pipedec.wire.messages import TokenLogprobs

Finish = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the output with its log-probabilities. `offset`: characters of output before it, those of what is
    reasoned among them, of which it may be itself, or of the tags and blanks around that."""

    token: int
    offset: int
    logprobs: TokenLogprobs
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """What became certain of choice `index`: text, the tokens that it begins with, what is called, and on the last one
    why it ended. What is reasoned comes before all text and calls."""

    index: int
    text: str
    tokens: tuple[ScoredToken, ...] = ()
    finish: Finish | None = None
    calls: tuple[CallDelta, ...] = ()
    reasoning: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.finish or self.calls or self.reasoning)

    @classmethod
    def joined(cls, deltas: Sequence[Delta]) -> Delta:
        """All deltas of one choice as one."""
        tokens = tuple(scored for delta in deltas for scored in delta.tokens)
        calls = tuple(call for delta in deltas for call in delta.calls)
        text, reasoning = "".join(delta.text for delta in deltas), "".join(delta.reasoning for delta in deltas)
        return cls(deltas[-1].index, text, tokens, deltas[-1].finish, calls, reasoning)


class Transcript:
    """The text of choice `index` as its tokens come."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        min_tokens: int = 0,
        before: Sequence[int] = (),
        scanner: CallScanner | None = None,
        reasoning: ReasoningScanner | None = None,
    ) -> None:
        """Stop strings count only once `min_tokens` tokens are there. The text goes on from that of tokens `before`.
        One scanner says what of it is a call, the other what is `reasoning`."""
        self._index, self._min_tokens, self._scanner, self._reasoning = index, min_tokens, scanner, reasoning
        marks = {token for each in (scanner, reasoning) if each is not None for token in each.marks}
        self._detokenizer, self._stops = Detokenizer(tokenizer, before, marks), StopStrings(stops)
        self._scored: list[ScoredToken] = []  # not yet told
        self._num_decoded = self._num_settled = 0  # characters: all, and those of which it is certain what they are
        self.num_tokens = self.num_reasoning_tokens = 0

    def push(self, event: TokenEvent) -> Delta:
        """What `event` adds; its `finish` is "stop" too when a stop string is reached, and nothing may follow then.
        Stop strings are looked for in what is said, not in reasoning or calls."""
        self.num_tokens += 1
        piece, num_before, num_reasoned = "", self._num_decoded, self.num_reasoning_tokens
        if event.finish != "stop":  # an end token is not text
            piece = self._detokenizer.push(event.token)
        if event.finish:
            piece += self._detokenizer.flush()
        self._num_decoded += len(piece)
        reasoning, answer = self._reason(piece, event)
        said, calls = self._call(answer, event)
        if event.finish != "stop" and event.logprobs is not None:
            is_between = self._reasoning is not None and self._reasoning.is_between
            is_reasoning = is_between or self.num_reasoning_tokens > num_reasoned
            self._scored.append(ScoredToken(event.token, num_before, event.logprobs, is_reasoning))

        stopped, num_out = False, 0
        if self.num_tokens >= self._min_tokens:
            num_out = self._stops.num_held + len(said)
            said, stopped = self._stops.push(said)
            num_out -= len(said)
        if (event.finish or calls) and not stopped:
            said += self._stops.flush()
        scanners = (each.num_held for each in (self._scanner, self._reasoning) if each is not None)
        self._num_settled = self._num_decoded - sum(scanners) - (num_out if stopped else self._stops.num_held)
        tokens = self._told(bool(event.finish) and not stopped)
        if stopped:
            return Delta(self._index, said, tokens, "stop", reasoning=reasoning)
        called = event.finish == "stop" and self._scanner is not None and self._scanner.has_called
        return Delta(self._index, said, tokens, "tool_calls" if called else event.finish, tuple(calls), reasoning)

    def _reason(self, piece: str, event: TokenEvent) -> tuple[str, str]:
        """What is reasoned in a piece of text, of which the event's token may be none, and what is not."""
        scanner = self._reasoning
        if scanner is None:
            return "", piece
        was_within = scanner.is_within
        reasoning, said = scanner.push(piece)
        if was_within:
            self.num_reasoning_tokens += 1
        elif scanner.is_within:  # with the tag's other tokens, which waited
            self.num_reasoning_tokens = self.num_tokens
            self._scored = [replace(scored, is_reasoning=True) for scored in self._scored]
        if event.finish:
            rest, answer = scanner.flush()
            return reasoning + rest, said + answer
        if event.token in self._detokenizer.hidden:
            said += scanner.interrupt()
        return reasoning, said

    def _call(self, piece: str, event: TokenEvent) -> tuple[str, list[CallDelta]]:
        """What is said and what is called in what is not reasoned."""
        scanner = self._scanner
        if scanner is None:
            return piece, []
        said, calls = scanner.push(piece)
        if event.finish:
            said += scanner.flush()
        elif event.token in self._detokenizer.hidden and not (self._reasoning and self._reasoning.is_within):
            said += scanner.interrupt()
        return said, calls

    def _told(self, everything: bool) -> tuple[ScoredToken, ...]:
        """The scored tokens whose text has begun to go out; at a natural end also those that have none."""
        told = [scored for scored in self._scored if everything or scored.offset < self._num_settled]
        del self._scored[: len(told)]
        return tuple(told)
