"""A manifest and the models that it names: whether they exist, fit together, and fit into the devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipedec.doctor.findings import Finding
from pipedec.errors import ManifestError, ModelError
from pipedec.partition import split_layers
from pipedec.sizing import DTYPE_BYTES, Gpu, ModelSize
from pipedec.sizing.gpus import GIB
from pipedec.sizing.memory import Need, span_need
from pipedec.spec import DeploymentSpec, PipeDecDeployment, Span
from pipedec.words import counted

TIGHT = 0.95  # of what is usable
UNBALANCED = 1.25  # of the slowest stage's weights over the mean


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model. `missing`: files that it lacks. `problem`: why it cannot be had, `unsupported`: why it cannot be run.
    `unseen`: why it could not be looked at from here, though it may be well."""

    uri: str
    config: Mapping[str, Any] | None = None
    missing: Sequence[str] = ()
    problem: str = ""
    unsupported: str = ""
    unseen: str = ""


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """A manifest, or what is wrong with it. `draft` is None unless it is a model of its own."""

    manifest: PipeDecDeployment | None
    errors: Sequence[ManifestError] = ()
    target: ModelFacts | None = None
    draft: ModelFacts | None = None
    gpu: Gpu | None = None


def judge_manifest(facts: ManifestFacts) -> list[Finding]:
    """Every finding about a manifest."""
    if facts.manifest is None:
        return [Finding.of(error, "manifest") for error in facts.errors]
    found = [Finding("ok", "manifest", f"{facts.manifest.metadata.name} is valid")]
    sizes: dict[str, ModelSize] = {}
    for check, model in (("target", facts.target), ("draft", facts.draft)):
        if model is not None:
            found.append(_model(check, model))
            if model.config is not None and not model.unsupported:
                try:
                    sizes[check] = ModelSize.of(model.config)
                except ModelError as error:
                    found.append(Finding("fail", check, str(error), "Choose another model"))
    if facts.target is not None and facts.target.config is not None and "target" in sizes:
        spec = facts.manifest.spec
        try:
            spans = split_layers(spec, facts.target.config)
            context = spec.serving.context(sizes["target"].context_limit)
        except ManifestError as error:
            return [*found, Finding.of(error, "split")]
        found.append(_split(sizes["target"], spans))
        found += _draft(spec, sizes["target"], sizes.get("draft"))
        found += _room(spec, spans, context, sizes, facts.gpu)
    return found


def _model(check: str, model: ModelFacts) -> Finding:
    if model.unseen:
        return Finding("skip", check, f"{model.uri}: {model.unseen}")
    if model.problem:
        return Finding("fail", check, model.problem, "Check the URI, and HF_TOKEN for gated models")
    if model.unsupported:
        remedy = (
            "Choose a decoder-only model of an architecture that transformers has, with its original weights, or in 8 "
            "or 4 bits"
        )
        return Finding("fail", check, model.unsupported, remedy)
    if model.missing:
        remedy = "Only models with safetensors and a tokenizer.json are served; download it whole, or choose another"
        return Finding("fail", check, f"{model.uri} lacks {', '.join(model.missing)}", remedy)
    return Finding("ok", check, f"{model.uri} is there and can be split")


def _room(
    spec: DeploymentSpec, spans: Sequence[Span], context: int, sizes: Mapping[str, ModelSize], gpu: Gpu | None
) -> Iterator[Finding]:
    target, slots = sizes["target"], spec.kv_slots(sizes["target"].context_limit)
    if slots < context + 2:
        message = f"spec.serving.kvSlots {slots} cannot hold one request of {context} tokens"
        yield Finding("fail", "KV slots", message, f"Write {context + 2} or more, or lower spec.serving.maxContext")
    width = DTYPE_BYTES[spec.model.dtype]
    needs = [span_need(target, span, slots, context, width) for span in spans]
    fullest = max(range(len(needs)), key=lambda stage: needs[stage].total)
    yield _memory(f"stage {fullest}, the fullest,", needs[fullest], gpu, target, width * target.held(spans[fullest]))
    if draft := sizes.get("draft"):
        width, span = DTYPE_BYTES[spec.draft_dtype], (0, draft.num_layers)
        need = span_need(draft, span, slots, context, width)
        yield _memory("the draft", need, gpu, draft, width * draft.held(span))


def _split(target: ModelSize, spans: Sequence[Span]) -> Finding:
    reads = [target.read(span) for span in spans]
    excess = max(reads) * len(reads) / sum(reads)
    parts = f"{counted(target.num_layers, 'layer')} in {counted(len(spans), 'stage')}"
    message = f"{parts}; the slowest reads {excess:.2f} times the mean"
    if excess > UNBALANCED:
        remedy = "All others wait for it: give stages instead of layers, or another number (see `pipedec split`)"
        return Finding("warn", "split", message, remedy)
    return Finding("ok", "split", message)


def _draft(spec: DeploymentSpec, target: ModelSize, draft: ModelSize | None) -> Iterator[Finding]:
    if spec.draft is None:
        yield Finding("skip", "draft", "there is none: predictions come from the text alone")
        return
    if spec.policy == "none":
        yield Finding("warn", "draft", "it is not used by policy none", "Leave out speculation.policy, or the draft")
    if spec.draft.target_layers is not None:
        if spec.draft.target_layers > target.num_layers:
            message = f"spec.draft.targetLayers is {spec.draft.target_layers}, but the model has {target.num_layers}"
            yield Finding("fail", "draft", message, f"Write {target.num_layers} or less")
        else:
            yield Finding("ok", "draft", f"the target's own first {counted(spec.draft.target_layers, 'layer')}")
    elif draft is not None and draft.vocab_size != target.vocab_size:
        message = f"its vocabulary has {draft.vocab_size} tokens, the target's {target.vocab_size}"
        yield Finding("fail", "draft", message, "Choose one of the target's own family; both must share a tokenizer")
    elif draft is not None and draft.parameters * spec.pipeline.num_stages > target.parameters * 2:
        message = f"{draft.parameters / 1e9:.1f}B parameters, more than two stages have: a level of the tree is late"
        yield Finding("warn", "draft", message, "Choose a smaller draft, or fewer stages")
    elif draft is not None:
        yield Finding("ok", "draft", f"{draft.parameters / 1e9:.2f}B parameters, the target's vocabulary")


def _memory(who: str, need: Need, gpu: Gpu | None, model: ModelSize, on_cpu: float) -> Finding:
    """`on_cpu` are the bytes of weights there, where none stay quantised."""
    weights = f"{need.weights / GIB:.1f} GiB of weights"
    if gpu is None and on_cpu > need.weights:
        bits = " and ".join(map(str, model.bits))
        weights = f"{weights} ({bits} bits, on a GPU; on a CPU {on_cpu / GIB:.1f})"
    parts = f"{weights}, {need.kv / GIB:.1f} of KV, {need.workspace / GIB:.1f} besides"
    if gpu is None:
        return Finding("skip", "memory", f"{who} needs {parts}; --gpu NAME compares that with a GPU")
    usable = gpu.usable_bytes
    message = f"{who} needs {need.total / GIB:.1f} of {usable / GIB:.1f} usable GiB on {gpu.name}: {parts}"
    remedy = "Use more stages, or lower serving.maxContext, maxSequences or kvSlots (`pipedec plan` reckons)"
    if need.total > usable:
        return Finding("fail", "memory", message, remedy)
    return (
        Finding("warn", "memory", message, remedy) if need.total > TIGHT * usable else Finding("ok", "memory", message)
    )
