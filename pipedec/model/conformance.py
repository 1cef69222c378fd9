"""Proof, at load, that a span run our way computes what transformers computes.

A family can look like any other and yet cap its attention scores, add sinks, or scale its embedding or logits. So
every kind of layer in the span, and both ends of the model, are run on random rows through transformers' own forward
with eager attention, and through ours; what differs is refused. Probes are in float32, whatever the model's dtype, so
that the tolerance can be tight, and sliding windows are shortened to fall inside the probe.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipedec.errors import ModelError
from pipedec.model.architecture import Architecture
from pipedec.model.attention import ATTENTION
from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor, logits_of
from pipedec.model.quantized import linear_weight, make_plain
from pipedec.model.span import Span
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import NO_PARENT, Batch, Open, Prefill, Row, Rows

_LENGTH = 14  # tokens of a probe
_WINDOW = 5  # what sliding windows are shortened to
_PREFILLED = 8  # the rest of a probe is run as tree rows, among others that must not matter
_TOLERANCE = 1e-4  # of the largest value that is compared
_HEAD_ROWS = 256
_LOGIT_SCALE = 40.0  # wide enough for any cap on logits to bite
_FOREIGN = (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError)
_SUSPECTS = {
    "attn_logit_softcapping": "attention scores are capped",
    "final_logit_softcapping": "logits are capped",
    "embedding_multiplier": "the embedding is scaled",
    "logits_scaling": "logits are scaled",
    "logit_scale": "logits are scaled",
    "lm_head_multiplier": "logits are scaled",
    "residual_multiplier": "residuals are scaled",
    "attention_chunk_size": "attention is cut into chunks",
    "alibi": "attention scores are biased by distance",
}


@torch.inference_mode()
def check_conformance(span: Span) -> None:
    """Raise ModelError, with architecture, place and likely reason, unless the span is run exactly."""
    architecture = span.architecture
    hidden = _random((_LENGTH, span.hidden_size), span.device)
    with _short_windows(architecture):
        arguments = _check_surroundings(span, hidden)
        for index in _distinct(span, arguments):
            with _in_float32(architecture, index):
                _check_layer(span, index, hidden)
        if span.first:
            _check_embedding(span)
        if span.last:
            _check_head(span, hidden)


def _check_surroundings(span: Span, hidden: torch.Tensor) -> list[dict[str, Any]]:
    """With every layer skipped, the model must hand its input through. Returns what each layer was given."""
    architecture = span.architecture
    with _skipping(architecture, keep=None) as arguments:
        output = _reference(architecture, "the model around its layers", inputs_embeds=hidden[None])
    _compare(architecture, "what lies between embedding, layers and norm", hidden, output)
    if len(arguments) != len(architecture.layers):
        raise ModelError(f"{architecture.name}: its layers are not each run once, in order")
    return arguments


def _distinct(span: Span, arguments: Sequence[dict[str, Any]]) -> list[int]:
    """First and last layer of the span, and one of each kind: same code, same settings, same arguments."""
    start, end = span.span
    layers = span.architecture.layers
    kinds = {_kind(layers[i], arguments[i]): i for i in reversed(range(start, end))}
    return sorted({start, end - 1, *kinds.values()})


def _kind(layer: nn.Module, arguments: dict[str, Any]) -> tuple[Any, ...]:
    structure = [
        (name, type(module).__name__, key, value)
        for name, module in layer.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, int | float | str | bool | None) and key not in ("layer_idx", "forward")
    ]
    return *structure, *sorted((name, id(value)) for name, value in arguments.items())


def _check_layer(span: Span, index: int, hidden: torch.Tensor) -> None:
    architecture, place = span.architecture, f"layer {index}"
    steps = _probe(hidden)
    with _skipping(architecture, keep=index), _attended(architecture.layers[index]) as expected_attention:
        expected = _reference(architecture, place, inputs_embeds=hidden[None])
    alone = Span(architecture, (index, index + 1), False, False, torch.float32, span.device, span.max_context)
    try:
        with _attended(architecture.layers[index]) as attention:
            executor = SpanExecutor(alone, 4 * _LENGTH, Execution.on(span.device, buckets=(), invariant=False))
            outputs = [_run(executor, step) for step in steps]
    except ModelError as error:
        raise ModelError(f"{architecture.name}, {place}: {error}") from error
    except _FOREIGN as error:
        raise ModelError(
            f"{architecture.name}, {place}: needs more than hidden states, positions and a KV cache "
            f"({type(error).__name__}: {error}); this family is not run"
        ) from error
    actual = torch.cat([output[step.wanted] for output, step in zip(outputs, steps, strict=True)])
    _compare(architecture, place, expected - hidden, actual - hidden)
    if expected_attention:
        # Compared by itself too: beside a large MLP, what attention does wrong could pass for rounding.
        actual = torch.cat([rows[step.wanted] for rows, step in zip(attention, steps, strict=True)])
        _compare(architecture, f"{place}, attention", expected_attention[0], actual)


def _run(executor: SpanExecutor, step: _Step) -> torch.Tensor:
    output = executor.execute(step.batch, step.hidden)
    assert output is not None  # nothing stops it
    return output


def _check_embedding(span: Span) -> None:
    architecture = span.architecture
    tokens = torch.arange(_LENGTH, device=span.device) % span.vocab_size
    with _skipping(architecture, keep=None):
        expected = _reference(architecture, "embedding", input_ids=tokens[None])
    _compare(architecture, "embedding", expected, architecture.embedding(tokens))


def _check_head(span: Span, hidden: torch.Tensor) -> None:
    """Norm and LM head, the latter cut to a few rows and enlarged."""
    architecture = span.architecture
    weight = linear_weight(architecture.lm_head, _HEAD_ROWS).float()
    norm = copy.deepcopy(architecture.norm).float()
    head = nn.Linear(span.hidden_size, len(weight), bias=False, device=span.device)
    head.weight = nn.Parameter(weight * (_LOGIT_SCALE / head_deviation(norm, weight, hidden)), requires_grad=False)
    lm = architecture.lm
    with (
        _replaced(lm, architecture.lm_head, head),
        _replaced(architecture.base, architecture.norm, norm),
        _skipping(architecture, keep=None, norm=False),
    ):
        expected = _reference(architecture, "LM head", whole=True, inputs_embeds=hidden[None])
    _compare(architecture, "LM head", expected, logits_of(norm, head, hidden))


def head_deviation(norm: nn.Module, weight: torch.Tensor, hidden: torch.Tensor) -> float:
    return max(float((norm(hidden) @ weight.T).std()), 1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A batch of the probe, its input, and which of its rows are the probe's own tokens."""

    batch: Batch
    hidden: torch.Tensor
    wanted: list[int]


def _probe(hidden: torch.Tensor) -> list[_Step]:
    """The probe's tokens, prefilled in two chunks and then as a path through a tree, each among other rows."""
    other = _random((_LENGTH, hidden.shape[1]), hidden.device, seed=1)
    half, count = _PREFILLED // 2, _PREFILLED
    opened = (Open(1, SamplingParams(), count), Open(2, SamplingParams(), half))
    blank = (0,) * half
    mine = Prefill(1, 0, blank, tuple(range(half)))
    foreign = Prefill(2, 0, blank, tuple(range(_LENGTH, _LENGTH + half)))
    first = _Step(
        Batch(0, 0, (*opened, foreign, mine)), torch.cat([other[:half], hidden[:half]]), list(range(half, count))
    )
    second = Batch(0, 1, (Prefill(1, half, blank, tuple(range(half, count))),))
    rows: list[Row] = []
    for position in range(count, _LENGTH):
        path = tuple(range(count, position))
        for slot in (2 * _LENGTH + position, position):
            rows.append(Row(1, slot, NO_PARENT, 0, position, slot, path))
    mixed = torch.stack([other[count:], hidden[count:]], dim=1).flatten(0, 1)
    third = _Step(Batch(0, 2, (), Rows.of(rows)), mixed, list(range(1, len(rows), 2)))
    return [first, _Step(second, hidden[half:count], list(range(half))), third]


def _reference(architecture: Architecture, place: str, *, whole: bool = False, **inputs: torch.Tensor) -> torch.Tensor:
    """Transformers' own forward of the base model, or of the whole, with eager attention: [rows, width]."""
    config = architecture.lm.config
    positions = torch.arange(_LENGTH, device=next(iter(inputs.values())).device)[None]
    try:
        config._attn_implementation = "eager"
        run = architecture.lm if whole else architecture.base
        output = run(position_ids=positions, use_cache=False, **inputs)
    except _FOREIGN as error:
        raise ModelError(
            f"{architecture.name}, {place}: transformers' own forward fails on a part of the model "
            f"({type(error).__name__}: {error}); this family is not run"
        ) from error
    finally:
        config._attn_implementation = ATTENTION
    result: torch.Tensor = output.logits if whole else output.last_hidden_state
    return result[0]


def _compare(architecture: Architecture, place: str, expected: torch.Tensor, actual: torch.Tensor) -> None:
    if expected.shape == actual.shape:
        expected, actual = expected.float(), actual.float()
        error, scale = (expected - actual).abs().max(), expected.abs().max()
        if error <= _TOLERANCE * scale:
            return
    config = architecture.lm.config
    known = (
        f"{why} (`{key}`)" for key, why in _SUSPECTS.items() if getattr(config, key, None) not in (None, False, 1.0)
    )
    reason = "; ".join(known) or "the family computes something of its own there"
    raise ModelError(
        f"{architecture.name}, {place}: differs from transformers' own result, likely because {reason}. "
        "It would not be run exactly, so it is not run"
    )


@contextmanager
def _skipping(architecture: Architecture, keep: int | None, norm: bool = True) -> Iterator[list[dict[str, Any]]]:
    """Layers other than `keep`, and the norm, hand their input through. Yields what each skipped layer was given."""
    given: list[dict[str, Any]] = []

    def hand_through(hidden: torch.Tensor, *_: Any, **arguments: Any) -> torch.Tensor:
        given.append(arguments)
        return hidden

    skipped = [layer for i, layer in enumerate(architecture.layers) if i != keep]
    try:
        for layer in skipped:
            layer.__dict__["forward"] = hand_through
        if norm:
            architecture.norm.__dict__["forward"] = lambda hidden: hidden
        yield given
    finally:
        for module in (*skipped, architecture.norm):
            module.__dict__.pop("forward", None)


@contextmanager
def _attended(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects what the layer's attention module returns, [rows, width], call by call."""
    collected: list[torch.Tensor] = []

    def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
        collected.append((output[0] if isinstance(output, tuple) else output)[0])

    modules = [module for module in layer.modules() if type(module).__name__.endswith("Attention")]
    hooks = [module.register_forward_hook(collect) for module in modules[:1]]
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _in_float32(architecture: Architecture, index: int) -> Iterator[None]:
    layer, config = architecture.layers[index], architecture.lm.config
    copied = copy.deepcopy(layer, {id(config): config})
    make_plain(copied)
    architecture.layers[index] = copied.float()
    try:
        for module in architecture.layers[index].modules():
            _shorten(module)
        yield
    finally:
        architecture.layers[index] = layer


@contextmanager
def _short_windows(architecture: Architecture) -> Iterator[None]:
    config = architecture.lm.config
    before = dict(vars(config))
    try:
        _shorten(config)
        yield
    finally:
        vars(config).update(before)


def _shorten(holder: object) -> None:
    for name, value in list(vars(holder).items()):
        if ("window" in name or "chunk" in name) and type(value) is int and value > _WINDOW:
            setattr(holder, name, _WINDOW)


@contextmanager
def _replaced(parent: nn.Module, child: nn.Module, by: nn.Module) -> Iterator[None]:
    (name,) = [name for name, module in parent.named_children() if module is child]
    setattr(parent, name, by)
    try:
        yield
    finally:
        setattr(parent, name, child)


def _random(shape: tuple[int, int], device: torch.device, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)
