"""Response bodies: plain dicts, as OpenAI's clients read them. The hot path is `Reply.chunk`."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from draft_service.api.run import Run
from draft_service.api.transcript import Delta, ScoredToken
from draft_service.text import Tokenizer
from draft_service.tools.scanner import CallDelta

Json = dict[str, Any]


class Reply(ABC):
    """The answer to one request: what its body, or all chunks of its stream, have in common."""

    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model: str, tokenizer: Tokenizer, scored: bool) -> None:
        """`scored`: log-probabilities are asked for, and so are there though an answer has no token with text."""
        self._tokenizer, self._scored = tokenizer, scored
        self._common: Json = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def body(self, deltas: Sequence[Delta], run: Run) -> Json:
        """The body of an answer that is complete: one delta for each choice."""
        choices = [self.choice(delta) for delta in deltas]
        return {"object": self.object, **self._common, "choices": choices, **cost(run)}

    def chunk(self, choices: Sequence[Json], **fields: Any) -> Json:
        """One chunk of a stream."""
        return {"object": self.chunk_object, **self._common, "choices": choices, **fields}

    @abstractmethod
    def choice(self, delta: Delta) -> Json:
        """A choice that is complete."""

    @abstractmethod
    def chunk_choice(self, delta: Delta) -> Json:
        """What a chunk adds to a choice."""

    def opening(self, index: int) -> Json | None:
        """The choice in the chunk that comes before all others, if there is such a chunk."""
        return None


class ChatReply(Reply):
    id_prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, delta: Delta) -> Json:
        said = self._reasoned(delta)
        if delta.calls:
            said["tool_calls"] = [self._call(call) for call in _whole(delta.calls)]
        content = delta.text or (None if delta.calls else "")
        message = {"role": "assistant", "content": content, "refusal": None, **said}
        return self._choice(delta, self._scored, message=message)

    def chunk_choice(self, delta: Delta) -> Json:
        said = self._reasoned(delta)
        if delta.text:
            said["content"] = delta.text
        if delta.calls:
            said["tool_calls"] = [{"index": call.index, **self._call(call)} for call in _whole(delta.calls)]
        return self._choice(delta, bool(delta.tokens), delta=said)

    @staticmethod
    def _reasoned(delta: Delta) -> Json:
        """By both names that clients know."""
        return {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning} if delta.reasoning else {}

    @staticmethod
    def _call(call: CallDelta) -> Json:
        if not call.id:
            return {"function": {"arguments": call.arguments}}
        return {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def opening(self, index: int) -> Json:
        return self._choice(Delta(index, ""), False, delta={"role": "assistant", "content": ""})

    def _choice(self, delta: Delta, scored: bool, /, **said: Json) -> Json:
        logprobs = {"content": [score(self._tokenizer, token) for token in delta.tokens], "refusal": None}
        return {
            "index": delta.index,
            **said,
            "logprobs": logprobs if scored else None,
            "finish_reason": delta.finish,
        }


class CompletionReply(Reply):
    id_prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def choice(self, delta: Delta) -> Json:
        return self._choice(delta, self._scored)

    def chunk_choice(self, delta: Delta) -> Json:
        return self._choice(delta, bool(delta.tokens))

    def _choice(self, delta: Delta, scored: bool) -> Json:
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._columns(delta.tokens) if scored else None,
            "finish_reason": delta.finish,
        }

    def _columns(self, tokens: Sequence[ScoredToken]) -> Json:
        return {
            "tokens": [self._text(scored.token) for scored in tokens],
            "token_logprobs": [_finite(scored.logprobs.logprob) for scored in tokens],
            "top_logprobs": [self._top(scored) for scored in tokens],
            "text_offset": [scored.offset for scored in tokens],
        }

    def _top(self, scored: ScoredToken) -> dict[str, float]:
        """The likeliest, and the chosen one; of those that look the same, the likelier."""
        chosen, top = (scored.token, scored.logprobs.logprob), dict[str, float]()
        for token, logprob in sorted((*scored.logprobs.top, chosen), key=lambda entry: -entry[1]):
            top.setdefault(self._text(token), _finite(logprob))
        return top

    def _text(self, token: int) -> str:
        """As OpenAI names a token that is no text by itself."""
        content = self._tokenizer.token_bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _whole(deltas: Iterable[CallDelta]) -> list[CallDelta]:
    """One for each call."""
    calls: dict[int, CallDelta] = {}
    for delta in deltas:
        calls[delta.index] = calls[delta.index] + delta if delta.index in calls else delta
    return list(calls.values())


def score(tokenizer: Tokenizer, scored: ScoredToken) -> Json:
    """A token with its log-probability, and the likeliest with theirs, as chats tell them."""

    def entry(token: int, logprob: float) -> Json:
        content = tokenizer.token_bytes(token)
        return {"token": content.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(content)}

    top = [entry(token, logprob) for token, logprob in scored.logprobs.top]
    return entry(scored.token, scored.logprobs.logprob) | {"top_logprobs": top}


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI says -9999 for impossible."""
    return max(logprob, -9999.0)


def usage(run: Run) -> Json:
    """Tokens up to now, in OpenAI's shape."""
    return {
        "prompt_tokens": run.num_prompt_tokens,
        "completion_tokens": run.num_generated_tokens,
        "total_tokens": run.num_prompt_tokens + run.num_generated_tokens,
        "prompt_tokens_details": {"cached_tokens": run.num_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": run.num_reasoning_tokens},
    }


def cost(run: Run) -> Json:
    """`usage` and, where the engine told it, our own `pipedec` beside it."""
    return {"usage": usage(run), **speculation(run)}


def speculation(run: Run) -> Json:
    """Our own `pipedec`, empty where the engine did not tell."""
    statistics = run.statistics
    if statistics is None:
        return {}
    pipedec = {
        "hit_rate": statistics.hit_rate,
        "tokens_per_step": statistics.tokens_per_step,
        "steps": statistics.steps,
    }
    return {"pipedec": pipedec}
