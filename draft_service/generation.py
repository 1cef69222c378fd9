"""The contract between the endpoint and the engine: a request goes in, events come out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import TokenLogprobs

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `end_tokens` end it (empty with `ignore_eos`); they are emitted as the last event's
    token but are not text. `max_tokens` >= 1 and len(prompt) + max_tokens <= the model's context."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    end_tokens: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of the output. `finish` is set on the last one: "stop" (an end token, this one) or "length"."""

    token: int
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the endpoint tells of the model. `context` is the most tokens (prompt + output) a sequence can have."""

    served_name: str
    context: int
    vocab_size: int


class Engine(Protocol):
    """What the endpoint needs. Closing the iterator (a client that went away) cancels the request at once."""

    info: EngineInfo

    @property
    def ready(self) -> bool:
        """Whether the pipeline is formed and a real forward pass has run."""

    @property
    def not_ready_reason(self) -> str:
        """Why not, for a person; empty when ready."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """Events of one request, in order. Raises `UnavailableError` when it cannot be taken or finished."""
