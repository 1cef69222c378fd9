"""The sizes of a model that its config.json alone tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipedec.model.shape import context_limit
from pipedec.partition import Costs, balanced, decoder_config, estimate_costs
from pipedec.spec import Dtype, Span

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters, and what a token's keys and values take. `table_parameters` are those of the embedding, and of the
    LM head."""

    architecture: str
    costs: Costs
    table_parameters: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    kv_elements: int  # of one token in one layer, K and V
    context_limit: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelSize:
        """Reads a config.json as transformers writes it. Raises `ModelError` where a size is missing, or weights are
        quantised in a way that is not run."""
        text = decoder_config(config)
        costs = estimate_costs(config)
        hidden, heads = costs.embed, int(text.get("num_attention_heads") or text["n_head"])
        head_dim = text.get("head_dim") or hidden // heads
        return cls(
            architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
            costs=costs,
            table_parameters=costs.head,
            vocab_size=costs.head // hidden,
            hidden_size=hidden,
            intermediate_size=int(text.get("intermediate_size") or 4 * hidden),
            num_heads=heads,
            kv_elements=2 * int(text.get("num_key_value_heads") or heads) * head_dim,
            context_limit=context_limit(text),
            tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        )

    @property
    def num_layers(self) -> int:
        return len(self.costs.layers)

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(self.costs.layers) + self.table_parameters * (1 if self.tied else 2)

    @property
    def bits(self) -> tuple[int, ...]:
        """In how many bits GPUs keep quantised weights of it."""
        found = {8: self.costs.eight_bits, 4: self.costs.four_bits}
        return tuple(bits for bits, parameters in found.items() if any(parameters))

    def split(self, stages: int) -> tuple[Span, ...]:
        """The balanced division, as `pipedec split` shows it."""
        return _split(self.costs, stages)

    def held(self, span: Span) -> int:
        """Parameters that a stage with these layers holds."""
        first, last = span[0] == 0, span[1] == self.num_layers
        tables = 1 if first and last and self.tied else first + last
        return sum(self.costs.layers[slice(*span)]) + tables * self.table_parameters

    def read(self, span: Span) -> int:
        """Parameters that it reads in one step: of the embedding, next to nothing."""
        return sum(self.costs.layers[slice(*span)]) + (span[1] == self.num_layers) * self.costs.head

    def held_bytes(self, span: Span, width: int) -> int:
        """What a stage with these layers holds on a GPU, `width` bytes a parameter but for quantised ones."""
        return width * self.held(span) - self._saved(span, width)

    def read_bytes(self, span: Span, width: int) -> int:
        """What it reads of them in one step."""
        return width * self.read(span) - self._saved(span, width)

    def _saved(self, span: Span, width: int) -> int:
        return sum(self.costs.saved(width)[slice(*span)])


@cache
def _split(costs: Costs, stages: int) -> tuple[Span, ...]:
    return balanced(costs, stages)
