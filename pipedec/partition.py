"""Layers to stages: contiguous spans whose slowest stage is as fast as it can be. Pure.

A pipeline is as fast as its slowest stage, and a decode step is bound by the bytes it reads, so the cost of a layer is
its parameters, those in 8 bits counted half, those in 4 bits a quarter and their scales. The LM head is a cost of the
last stage and often weighs as much as several layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from pipedec.errors import ManifestError, ModelError
from pipedec.quantization import read_quantization
from pipedec.spec import DeploymentSpec, Span
from pipedec.words import counted

_HALF_PRECISION = 2  # bytes
_SCALE = 4  # bytes of a group's scale and zero


@dataclass(frozen=True, slots=True)
class Costs:
    """Parameters read in one step: by each layer, by the embedding (one row), and by norm and LM head. `eight_bits`
    and `four_bits` are those of each layer that GPUs keep in so many, `scale_bytes` what the scales of the latter take;
    none where they are empty."""

    layers: tuple[int, ...]
    embed: int
    head: int
    eight_bits: tuple[int, ...] = ()
    four_bits: tuple[int, ...] = ()
    scale_bytes: tuple[int, ...] = ()

    def in_bytes(self, width: int) -> Costs:
        """The same in bytes on a GPU, where a parameter that is not quantised takes `width`."""
        layers = (width * layer - saved for layer, saved in zip(self.layers, self.saved(width), strict=True))
        return Costs(tuple(layers), width * self.embed, width * self.head)

    def saved(self, width: int) -> tuple[int, ...]:
        """By how many bytes each layer is smaller than if all its parameters took `width`."""
        none = (0,) * len(self.layers)
        parts = zip(self.eight_bits or none, self.four_bits or none, self.scale_bytes or none, strict=True)
        return tuple((width - 1) * eight + width * four - four // 2 - scales for eight, four, scales in parts)


def estimate_costs(config: Mapping[str, Any]) -> Costs:
    """Costs from a transformers `config.json`. Raises `ModelError` where a size is missing.

    Of quantised weights those are counted whose layers have the usual names, and the scales of groups; other scales are
    not, nor is a quantised head.
    """
    text = decoder_config(config)

    def size(*names: str) -> int:
        for name in names:
            if isinstance(value := text.get(name), int) and value > 0:
                return value
        raise ModelError(f"config.json has no {' or '.join(names)}; the layers cannot be counted and divided")

    def optional(name: str) -> int | None:
        value = text.get(name)
        if value and not isinstance(value, int):
            raise ModelError(f"config.json: `{name}` is not a number; the layers cannot be reckoned and divided")
        return value or None

    hidden = size("hidden_size", "n_embd")
    heads = size("num_attention_heads", "n_head")
    head_dim = optional("head_dim") or hidden // heads
    kv_heads = optional("num_key_value_heads") or heads
    intermediate = optional("moe_intermediate_size") or optional("intermediate_size") or 4 * hidden
    experts = optional("num_local_experts") or optional("num_experts") or 1
    query, key, mlp = hidden * head_dim * heads, hidden * head_dim * kv_heads, hidden * intermediate * experts
    sizes = {f"self_attn.{name}_proj": query for name in "qo"} | {f"self_attn.{name}_proj": key for name in "kv"}
    sizes |= {f"mlp.{name}_proj": mlp for name in ("gate", "up", "down")}
    layers, quantization = range(size("num_hidden_layers", "n_layer")), read_quantization(config)
    costs = Costs((sum(sizes.values()),) * len(layers), hidden, hidden * size("vocab_size"))
    if quantization is None:
        return costs
    found = [
        [(count, of) for name, count in sizes.items() if (of := quantization.scheme(f"model.layers.{layer}.{name}"))]
        for layer in layers
    ]
    eight, four = (tuple(sum(count for count, of in each if of.bits == bits) for each in found) for bits in (8, 4))
    scales = (sum(_SCALE * count // of.group for count, of in each if of.group) for each in found)
    return replace(costs, eight_bits=eight, four_bits=four, scale_bytes=tuple(scales))


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a `config.json` that describes the decoder: the whole, unless the model has other parts too."""
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        raise ModelError("config.json: `text_config` is not a JSON object")
    return text


def split_layers(spec: DeploymentSpec, config: Mapping[str, Any]) -> tuple[Span, ...]:
    """The spans of a manifest's pipeline for a model: as written by hand, or balanced.

    `config` is the model's `config.json`. Raises `ManifestError` naming the field that does not fit it.
    """
    costs = estimate_costs(config)
    count = len(costs.layers)
    if spec.pipeline.spans is not None:
        return _checked(spec.pipeline.spans, count)
    if spec.pipeline.num_stages > count:
        raise ManifestError(
            "spec.pipeline.stages",
            f"is {spec.pipeline.num_stages}, but the model has {counted(count, 'layer')}",
            f"Write {count} or less",
        )
    return balanced(costs, spec.pipeline.num_stages)


def balanced(costs: Costs, stages: int) -> tuple[Span, ...]:
    """The spans of a balanced pipeline, on GPUs and in half precision. Raises `ValueError` as `partition` does."""
    read = costs.in_bytes(_HALF_PRECISION)
    return partition(read.layers, stages, read.embed, read.head)


def _checked(spans: tuple[Span, ...], count: int) -> tuple[Span, ...]:
    for index, (start, end) in enumerate(spans):
        if end > count:
            raise ManifestError(
                f"spec.pipeline.layers[{index}]",
                f"{start}-{end - 1} is beyond the model, which has {counted(count, 'layer')}",
                f"The last layer is {count - 1}",
            )
    if spans[-1][1] < count:
        raise ManifestError(
            f"spec.pipeline.layers[{len(spans) - 1}]",
            f"ends at layer {spans[-1][1] - 1}, but the model has {counted(count, 'layer')}",
            f"The last range must end with {count - 1}",
        )
    return spans


def partition(costs: Sequence[float], stages: int, embed_cost: float = 0, head_cost: float = 0) -> tuple[Span, ...]:
    """Contiguous, non-empty spans with the cheapest costliest stage, and among those the least sum of squares.

    `embed_cost` counts on the first stage, `head_cost` on the last. Raises `ValueError` unless there is at
    least one stage, and a layer for each.
    """
    count = len(costs)
    if not 1 <= stages <= count:
        raise ValueError(f"{counted(count, 'layer')} cannot be divided into {counted(stages, 'stage')}")
    sums = [0.0, *accumulate(costs)]

    def cost(start: int, end: int) -> float:
        return sums[end] - sums[start] + embed_cost * (start == 0) + head_cost * (end == count)

    bottleneck = max(cost(*span) for span in _best(count, stages, cost, max))

    def square(start: int, end: int) -> float:
        return cost(start, end) ** 2 if cost(start, end) <= bottleneck else float("inf")

    return _best(count, stages, square, lambda one, other: one + other)


def _best(
    count: int, stages: int, cost: Callable[[int, int], float], join: Callable[[float, float], float]
) -> tuple[Span, ...]:
    """Spans of least joint cost, stage by stage: `best[end]` divides the first `end` layers."""
    best: dict[int, tuple[float, tuple[Span, ...]]] = {end: (cost(0, end), ((0, end),)) for end in range(1, count + 1)}
    for stage in range(1, stages):
        best = {
            end: min(
                (
                    (join(best[start][0], cost(start, end)), (*best[start][1], (start, end)))
                    for start in range(stage, end)
                ),
                key=lambda candidate: candidate[0],
            )
            for end in range(stage + 1, count + 1)
        }
    return best[count][1]
