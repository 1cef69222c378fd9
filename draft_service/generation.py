"""The contract between the endpoint and the engine: a request goes in, events come out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipedec.sampling_params import SamplingParams
from pipedec.spec.report import PipelineReport
from pipedec.wire.messages import TokenLogprobs

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `end_tokens` end it (empty with `ignore_eos`); they are emitted as the last event's
    token but are not text. `max_tokens` >= 1 and len(prompt) + max_tokens <= the model's context. `id` is what logs
    call it."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    end_tokens: frozenset[int] = frozenset()
    id: str = ""


@dataclass(slots=True)
class RequestStatistics:
    """Counts of one request. A decided token is a *hit* if its node was in the pipeline already. `steps` counts the
    batches that carried rows of the request. `reused` prompt tokens were computed for another request already.
    `admitted` is when it first got a place in the pipeline, in seconds of the monotonic clock."""

    hits: int = 0
    misses: int = 0
    steps: int = 0
    reused: int = 0
    admitted: float | None = None

    @property
    def hit_rate(self) -> float:
        """Share of decided tokens that were in flight already; 0 before the first."""
        return self.hits / (self.hits + self.misses) if self.hits else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Decided tokens per batch that carried rows of the request; 0 before the first."""
        return (self.hits + self.misses) / self.steps if self.steps else 0.0


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of the output. `finish` is set on the last one: "stop" (an end token, this one) or "length".
    `statistics` are the request's so far."""

    token: int
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None
    statistics: RequestStatistics | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the endpoint tells of the model. `context` is the most tokens (prompt + output) a sequence can have, `split`
    every stage's layers, half-open."""

    served_name: str
    context: int
    vocab_size: int
    split: tuple[tuple[int, int], ...]


class Engine(Protocol):
    """What the endpoint needs. Closing the generator (a client that went away) cancels the request at once."""

    info: EngineInfo

    leaving: bool
    """Whether it shuts down, so that clients should connect elsewhere; requests may still be taken."""

    @property
    def report(self) -> PipelineReport:
        """How the pipeline stands, for the operator."""

    @property
    def ready(self) -> bool:
        """Whether the pipeline is formed and a real forward pass has run."""

    @property
    def accepting(self) -> bool:
        """Whether requests are taken: also while a lost stage is on its way back, when they wait, but neither before
        the pipeline was ready for the first time nor once it shuts down."""

    @property
    def not_ready_reason(self) -> str:
        """Why not, for a person; empty when ready."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Events of one request, in order. Raises `UnavailableError` when it cannot be taken or finished now,
        `UnfinishableError` when it never can, and `RequestError` when what it demands cannot be met."""
