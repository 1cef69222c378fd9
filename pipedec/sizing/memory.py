"""What must fit into a GPU: weights, KV slots, workspace."""

from __future__ import annotations

from dataclasses import dataclass

from pipedec.quantization import PIECE_NUMBERS
from pipedec.sizing.gpus import GIB
from pipedec.sizing.model import ModelSize
from pipedec.spec import Serving, Span, Speculation

LIBRARIES = GIB  # the CUDA context, kernels, the allocator's slack
PREFILL_CHUNK, TREE_ROWS = Serving().prefill_chunk, Speculation().width  # of one batch, unless the manifest says more


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes."""

    weights: float
    kv: float
    workspace: float

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.workspace


def kv_slots(stages: int, sequences: int, context: int) -> int:
    """As the manifest reckons when it does not give `serving.kvSlots`, with at most `TREE_ROWS` rows in a batch."""
    return sequences * context + (stages + 1) * max(TREE_ROWS, sequences)


def stage_needs(model: ModelSize, stages: int, sequences: int, context: int, width: int) -> list[Need]:
    """What each stage needs; `width` is the bytes of one number."""
    slots = kv_slots(stages, sequences, context)
    return [span_need(model, span, slots, context, width) for span in model.split(stages)]


def draft_need(draft: ModelSize, stages: int, sequences: int, context: int, width: int) -> Need:
    """What the draft pod needs: the whole draft, and as many slots as a stage has."""
    return span_need(draft, (0, draft.num_layers), kv_slots(stages, sequences, context), context, width)


def span_need(model: ModelSize, span: Span, slots: int, context: int, width: int) -> Need:
    """What these layers need, with so many KV slots."""
    layers = span[1] - span[0]
    rows = 6 * model.hidden_size + 3 * model.intermediate_size + model.num_heads * context  # with one layer's scores
    gathered = slots * model.kv_elements  # one layer's, when requests lie apart in the pool
    made = min(PIECE_NUMBERS, 2 * model.hidden_size * model.intermediate_size) * bool(model.bits)
    logits = 4 * TREE_ROWS * model.vocab_size * (span[1] == model.num_layers)
    return Need(
        weights=model.held_bytes(span, width),
        kv=slots * model.kv_elements * layers * width,
        workspace=LIBRARIES + (PREFILL_CHUNK * rows + gathered + made) * width + logits,
    )
