"""`python -m stage_service`: one stage, as the environment says (see `pipedec.config.StageConfig`)."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # process 1 has no default, and to import and to load takes seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipedec.config import StageConfig
from pipedec.errors import PipeDecError
from pipedec.garbage import collect_rarely, importing
from pipedec.health import Health, HealthServer
from pipedec.logs import configure_stage, fields
from pipedec.metrics import service_registry
from pipedec.metrics.stage import StageMetrics
from pipedec.process_name import name_process
from pipedec.wire.sockets import Transport

if TYPE_CHECKING:
    from stage_service.assembly import LoadedStage

_log = logging.getLogger("stage_service")


def main(adapt: Callable[[LoadedStage], LoadedStage] = lambda stage: stage) -> int:
    """Serve until SIGTERM. `adapt` may put another worker in the place of the one that was loaded."""
    config = StageConfig.from_env()
    configure_stage(config)
    name_process(f"stage {config.stage}")
    health, registry = Health(), service_registry("stage")
    metrics = StageMetrics(registry, config.stage)
    with HealthServer(config.bind_host, config.metrics_port, health, registry) as server:
        _log.info("listening", extra=fields(health=server.port))
        with importing():
            from stage_service.assembly import assemble, load_stage  # takes seconds: probes are answered meanwhile

        stage = adapt(load_stage(config, health))
        with Transport.open(config.keys_dir) as transport:
            loop = assemble(config, stage, transport, metrics, health)
            collect_rarely()
            signal.signal(signal.SIGTERM, lambda *_: loop.stop())  # after its step
            loop.run()
    _log.info("stopped")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PipeDecError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
