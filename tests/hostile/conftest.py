"""One small pipeline of real processes for all tests here; each leaves it serving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.hostile.trial import resource
from benchmarks.up import Up, running
from tests.tiny import tiny_model

DRAIN_SECONDS = 8
STAGES = 2


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with running(resource(model, STAGES, drainSeconds=DRAIN_SECONDS, maxQueue=64)) as pipeline:
        yield pipeline
