"""From settings to a stage that can serve: the model's folder, its split, this stage's layers, its sockets."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, replace
from functools import partial

import torch

from pipedec.config import StageConfig
from pipedec.errors import ManifestError
from pipedec.health import Health
from pipedec.logs import Milestones, fields
from pipedec.metrics.stage import StageMetrics
from pipedec.model.devices import check_dtype, choose_device
from pipedec.model.executor import SpanExecutor
from pipedec.model.grammar import Grammars
from pipedec.model.loader import SpanModel
from pipedec.model.shape import model_shape, read_config
from pipedec.model.tokenizer import backend_of, read_tokenizer
from pipedec.models import identity, resolve
from pipedec.partition import split_layers
from pipedec.revision import revision
from pipedec.spec import load_manifest
from pipedec.wire.messages import PROTOCOL_VERSION, Register
from pipedec.wire.sockets import Bind, Transport, batch_receiver
from stage_service.loop import StageLoop, Worker
from stage_service.worker import StageWorker

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A worker with its weights, and what it offers the head but for the address."""

    worker: Worker
    offer: Register
    device: str


def load_stage(config: StageConfig, health: Health) -> LoadedStage:
    """Fetch and load this stage's layers; `health` tells how far it is. Raises `ManifestError` or `ModelError`."""
    spec = load_manifest(config.manifest).spec
    stages = spec.pipeline.num_stages
    if config.stage >= stages:
        raise ManifestError(
            "PIPEDEC_STAGE_INDEX", f"is {config.stage}, but the manifest has stages 0 to {stages - 1}", "Lower it"
        )
    torch.set_num_threads(config.threads or spec.serving.threads or torch.get_num_threads())

    milestones = Milestones(_log)

    def tell(what: str, fraction: float | None) -> None:
        health.reason = what if fraction is None else f"{what}: {fraction:.0%}"
        milestones(what, fraction)

    path = resolve(spec.model.uri, config.model_cache, tell, claims=config.claims_dir)
    split = split_layers(spec, read_config(path))

    span = f"{split[config.stage][0]}-{split[config.stage][1] - 1}"
    device, dtype = choose_device(config.device), getattr(torch, spec.model.dtype)
    check_dtype(device, dtype, "spec.model.dtype")
    model = SpanModel.load(
        path, split[config.stage], dtype=dtype, device=device, progress=partial(tell, f"loading layers {span}")
    )
    slots = spec.kv_slots(model_shape(path).max_context)
    executor = SpanExecutor(model, slots, progress=partial(tell, "preparing the device"))
    is_last = config.stage == stages - 1
    grammars = Grammars.of(backend_of(read_tokenizer(path)), model.vocab_size) if is_last else None
    worker = StageWorker(executor, is_last, grammars)
    _log.info("loaded", extra=fields(layers=span, device=model.device, slots=slots))
    ours = revision(spec, split, PROTOCOL_VERSION, identity(path))
    offer = Register(
        stage=config.stage,
        stages=stages,
        layers=split[config.stage],
        revision=ours,
        address="",
        slots=slots,
        incarnation=uuid.uuid4().hex,
        width=model.hidden_size,
        dtype=spec.model.dtype,
    )
    return LoadedStage(worker, offer, str(model.device))


def assemble(
    config: StageConfig, stage: LoadedStage, transport: Transport, metrics: StageMetrics, health: Health
) -> StageLoop:
    """Listen for the predecessor, and make the loop. Raises `PipeDecError` when the port is taken."""
    offer = stage.offer
    where = Bind(config.bind_host, config.data_port, config.advertise_host)
    row_bytes = None if offer.stage == 0 else offer.width * getattr(torch, offer.dtype).itemsize
    receiver = batch_receiver(transport, where, row_bytes=row_bytes, credits=offer.stages + 2)
    register = replace(offer, address=receiver.address)
    metrics.holds(offer.layers, offer.dtype, stage.device)
    return StageLoop(stage.worker, register, transport, receiver, config.head_address, metrics, health)
