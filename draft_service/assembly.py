"""From settings to a head that can serve: the models' folders, the policy, the draft model, sockets, the endpoint."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from draft_service.api.app import MIN_BODY_LIMIT
from draft_service.api.key_file import KeyFile
from draft_service.draft.drafter import Drafter, Proposer
from draft_service.engine import PipelineEngine
from draft_service.formation import Members
from draft_service.generation import EngineInfo
from draft_service.grammar_trial import GrammarTrial
from draft_service.live.broadcast import Broadcast
from draft_service.live.frames import About
from draft_service.loop import Head, Links
from draft_service.schedule.scheduler import Limits, Scheduler
from draft_service.text import Tokenizer, load_tokenizer
from draft_service.tracing import Tracer
from pipedec.api_key import read_api_key
from pipedec.config import DraftConfig
from pipedec.cost import StepCost
from pipedec.errors import ManifestError
from pipedec.logs import Milestones, fields
from pipedec.metrics.head import HeadMetrics
from pipedec.metrics.requests import RequestMetrics
from pipedec.model.devices import check_dtype, choose_device
from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.grammar import Grammars
from pipedec.model.loader import SpanModel
from pipedec.model.shape import model_shape, read_config
from pipedec.models import identity, resolve
from pipedec.partition import split_layers
from pipedec.policy import make_policy
from pipedec.revision import revision
from pipedec.spec import PipeDecDeployment, load_manifest
from pipedec.wire.messages import PROTOCOL_VERSION
from pipedec.wire.sockets import Bind, ControlServer, Transport, verdict_receiver

_log = logging.getLogger(__name__)

BODY_BYTES_PER_TOKEN = 16  # of a prompt as text or ids, in JSON with its escapes


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """What the head needs of the target (no weights), and the draft model, if there is one. Without `grammars` there is
    no structured output."""

    resource: PipeDecDeployment
    split: tuple[tuple[int, int], ...]
    revision: str
    info: EngineInfo
    tokenizer: Tokenizer
    draft: Proposer | None
    grammars: Grammars | None = None


def load_models(config: DraftConfig) -> LoadedModels:
    """Fetch what is missing, and load the draft model. Raises `ManifestError` or `ModelError`."""
    if config.api_key_file is not None:
        read_api_key(config.api_key_file)  # now, for loading may take long
    resource = load_manifest(config.manifest)
    spec = resource.spec
    torch.set_num_threads(config.threads or spec.serving.threads or torch.get_num_threads())

    fetching = Milestones(_log)
    path = resolve(spec.model.uri, config.model_cache, fetching, claims=config.claims_dir)
    shape = model_shape(path)
    split = split_layers(spec, read_config(path))
    context, slots = spec.serving.context(shape.max_context), spec.kv_slots(shape.max_context)
    if slots < least_slots(context):
        raise ManifestError(
            "spec.serving.kvSlots",
            f"{slots} slots cannot hold one request of {context} tokens",
            f"Write {least_slots(context)} or more, or lower spec.serving.maxContext",
        )
    draft = None
    if spec.policy != "none" and spec.draft is not None:
        folder = path
        if spec.draft.uri is not None:
            folder = resolve(spec.draft.uri, config.model_cache, fetching, claims=config.claims_dir)
        draft = _load_draft(config, resource, folder, path, slots, context)
    info = EngineInfo(resource.served_name, context, shape.vocab_size, tuple(split))
    ours = revision(spec, split, PROTOCOL_VERSION, identity(path))
    tokenizer = load_tokenizer(path)
    grammars = Grammars.of(tokenizer.backend, shape.vocab_size)
    return LoadedModels(resource, split, ours, info, tokenizer, draft, grammars)


def least_slots(context: int) -> int:
    """With which one request alone fits: with a slot for its cursor, and one in reserve."""
    return context + 2


def _load_draft(
    config: DraftConfig, resource: PipeDecDeployment, folder: Path, target: Path, slots: int, context: int
) -> Drafter:
    spec, draft = resource.spec, resource.spec.draft
    assert draft is not None
    shape, wanted = model_shape(folder), model_shape(target).vocab_size
    if shape.vocab_size != wanted:
        raise ManifestError(
            "spec.draft.uri",
            f"has a vocabulary of {shape.vocab_size} tokens, the target has {wanted}",
            "Choose a draft of the target's own family; the two must share a tokenizer",
        )
    layers = draft.target_layers or shape.num_layers
    if layers > shape.num_layers:
        raise ManifestError(
            "spec.draft.targetLayers",
            f"is {layers}, but the model has {shape.num_layers}",
            f"Write {shape.num_layers} or less",
        )
    device, dtype = choose_device(config.device), getattr(torch, spec.draft_dtype)
    check_dtype(device, dtype, "spec.draft.dtype")
    model = SpanModel.load(
        folder,
        (0, layers),
        dtype=dtype,
        device=device,
        first=True,
        last=True,
        ends=target,
    )
    if model.max_context < context:  # beyond what it was trained on it only guesses worse
        _log.warning("draft has a shorter context", extra=fields(tokens=model.max_context, target=context))
        model = replace(model, max_context=context)
    _log.info("draft loaded", extra=fields(layers=layers, device=model.device))
    # What a draft foresees need not be the same every time, only soon.
    return Drafter(SpanExecutor(model, slots, Execution.on(model.device, invariant=False)), spec.speculation.children)


def assemble_head(config: DraftConfig, models: LoadedModels, transport: Transport, registry: CollectorRegistry) -> Head:
    """Listen for stages and verdicts. Raises `PipeDecError` when a port is taken."""
    spec, speculation = models.resource.spec, models.resource.spec.speculation
    stages = len(models.split)
    control = ControlServer(transport, Bind(config.bind_host, config.control_port, config.advertise_host))
    verdicts = verdict_receiver(
        transport, Bind(config.bind_host, config.verdict_port, config.advertise_host), credits=stages + 2
    )
    members = Members(
        stages,
        models.revision,
        verdicts.address,
        first_epoch=int(time.time() * 1000),  # above every epoch of the heads before this one
        num_layers=models.split[-1][1],
        least_slots=least_slots(models.info.context),
        most_slots=spec.kv_slots(models.info.context),
    )
    cost, draft_cost = StepCost(), StepCost()
    policy = make_policy(
        spec.policy,
        width=speculation.width,
        children=speculation.children,
        depth=speculation.depth or 4,
        cost=cost,
        draft_cost=draft_cost,
    )
    limits = Limits(
        stages,
        max_sequences=spec.serving.max_sequences,
        prefill_chunk=spec.serving.prefill_chunk,
        max_rows=spec.max_rows,
        prefix_cache=spec.serving.prefix_cache,
    )
    scheduler = Scheduler(limits, policy, models.grammars)
    if models.draft is None:
        scheduler.lose_draft()
    head = Head(scheduler, members, Links(transport, control, verdicts), models.draft, cost=cost, draft_cost=draft_cost)
    HeadMetrics(registry, models.resource.served_name, spec.policy, scheduler.counts, head.state)
    return head


def assemble_app(
    config: DraftConfig,
    models: LoadedModels,
    head: Head,
    registry: CollectorRegistry,
    trial: GrammarTrial | None = None,
) -> tuple[FastAPI, PipelineEngine, Broadcast]:
    """The endpoint over a head, and what its live page shows. Needs a running event loop."""
    spec = models.resource.spec
    serving = spec.serving
    at_once = serving.max_sequences + serving.max_queue
    engine = PipelineEngine(models.info, head, max_requests=at_once, timeout=serving.request_timeout_seconds)
    metrics = RequestMetrics(registry, models.resource.served_name)
    api_key = None if config.api_key_file is None else KeyFile(config.api_key_file).key
    show_text = serving.live_page.show_text if config.live_text is None else config.live_text
    text = models.tokenizer.token_text if show_text else None
    live = Broadcast(head, About(models.resource.served_name, models.split, spec.policy, text))
    shown = live if serving.live_page.enabled else None
    tracer = Tracer.open(models.resource.served_name)
    app = create_app(
        engine,
        models.tokenizer,
        metrics,
        api_key=api_key,
        max_body_bytes=max(MIN_BODY_LIMIT, BODY_BYTES_PER_TOKEN * models.info.context),
        max_sequences=at_once,
        health=head.health,
        live=shown,
        tracer=tracer,
        trial=None if models.grammars is None else trial,
    )
    return app, engine, live
