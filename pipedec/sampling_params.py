"""How the next token is chosen from the target's logits: the part of a request that travels to the last stage."""

from __future__ import annotations

from dataclasses import dataclass, fields

GREEDY = 1e-5  # temperature; below, logits divided by it would leave float32
MIN_REPETITION_PENALTY = 0.01
MAX_GRAMMAR = 2**17  # bytes


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request; the meaning of each is vLLM's and OpenAI's.

    Penalties and biases apply to the logits in this order: `min_tokens` (end tokens suppressed), `logit_bias`,
    `repetition_penalty` (prompt and output), `frequency_penalty` and `presence_penalty` (output only),
    `temperature`, `top_k`, `top_p`, `min_p`. A `temperature` below `GREEDY` is greedy. Randomness is keyed by
    (`seed`, position), so a position's token does not depend on policy, stages or faults. What the `grammar` does not
    allow next is excluded before `temperature`; where the text is whole, it allows the end tokens.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias) pairs
    min_tokens: int = 0  # `end_tokens` cannot be chosen before this many output tokens
    end_tokens: tuple[int, ...] = ()
    seed: int = 0  # 0 <= seed < 2**63
    logprobs: int | None = None  # None: none; n: of the chosen token and of the n likeliest
    grammar: str = ""  # that the output follows, as `pipedec.model.grammar` reads it; empty: any text

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0.0 <= self.temperature <= 100.0, "between 0 and 100"),
            ("top_k", self.top_k >= 0, "0 (off) or positive"),
            ("top_p", 0.0 <= self.top_p <= 1.0, "in [0, 1]"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "in [0, 1]"),
            ("repetition_penalty", MIN_REPETITION_PENALTY <= self.repetition_penalty <= 100.0, "in [0.01, 100]"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "in [-2, 2]"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "in [-2, 2]"),
            ("min_tokens", self.min_tokens >= 0, "0 or positive"),
            ("seed", 0 <= self.seed < 2**63, "in [0, 2**63)"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= 20, "between 0 and 20"),
        )
        if len(self.grammar) > MAX_GRAMMAR or len(self.grammar.encode()) > MAX_GRAMMAR:
            raise ValueError(f"grammar must have at most {MAX_GRAMMAR} bytes")
        for name, good, wanted in checks:
            if not good:
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY

    def to_wire(self) -> dict[str, object]:
        """The fields that differ from the defaults, as msgpack can carry them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
