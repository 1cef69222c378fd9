"""`python -m draft_service`: the head of a pipeline, as the environment says (see `pipedec.config.DraftConfig`)."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # process 1 has no default, and to import and to load takes seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import asyncio
import logging

from pipedec.garbage import collect_rarely, importing

with importing():
    from draft_service.api import serve
    from draft_service.assembly import LoadedModels, assemble_app, assemble_head, load_models
    from draft_service.grammar_trial import GrammarTrial
from pipedec.config import DraftConfig
from pipedec.errors import PipeDecError
from pipedec.logs import configure_draft, fields
from pipedec.metrics import service_registry
from pipedec.process_name import name_process
from pipedec.wire.sockets import Transport

_log = logging.getLogger(__name__)


async def run(config: DraftConfig, models: LoadedModels) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises what the head's thread raises."""
    registry = service_registry("draft")
    serving = models.resource.spec.serving
    port = serving.port if config.http_port is None else config.http_port
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    trial = GrammarTrial(models.tokenizer.backend, models.info.vocab_size)
    with Transport.open(config.keys_dir) as transport, trial:
        head = assemble_head(config, models, transport, registry)
        app, engine, live = assemble_app(config, models, head, registry, trial)
        running = asyncio.create_task(asyncio.to_thread(head.run))
        running.add_done_callback(lambda _: stop.set())
        serving_http = asyncio.create_task(
            serve(
                app,
                config.http_host,
                port,
                closed := asyncio.Event(),
                on_listening=lambda bound: _log.info("listening", extra=fields(host=config.http_host, port=bound)),
            )
        )
        serving_http.add_done_callback(lambda _: stop.set())
        await stop.wait()
        if not running.done():
            await engine.drain(serving.drain_seconds, config.drain_notice)
        live.close()
        closed.set()
        await serving_http
        head.stop()
        await running
        _log.info("stopped")


def main() -> int:
    config = DraftConfig.from_env()
    configure_draft(config)
    name_process("draft")
    models = load_models(config)
    collect_rarely()
    asyncio.run(run(config, models))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PipeDecError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        sys.exit(f"the endpoint cannot listen: {error}")
