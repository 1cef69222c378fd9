"""One endpoint behind a real server for all tests, with an engine that each test scripts anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import httpx
import pytest
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from draft_service.grammar_trial import GrammarTrial
from draft_service.text import Tokenizer
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import MODEL, ScriptedEngine, byte_tokenizer, served


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def metrics() -> RequestMetrics:
    return RequestMetrics(CollectorRegistry(), MODEL)


@pytest.fixture(scope="session")
def shared_engine(tokenizer: Tokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer)


@pytest.fixture
def engine(shared_engine: ScriptedEngine, tokenizer: Tokenizer) -> ScriptedEngine:
    """The engine behind `port`, as new."""
    fresh = ScriptedEngine(tokenizer)
    for each in fields(fresh):
        setattr(shared_engine, each.name, getattr(fresh, each.name))
    return shared_engine


@pytest.fixture(scope="session")
def port(shared_engine: ScriptedEngine, tokenizer: Tokenizer, metrics: RequestMetrics) -> Iterator[int]:
    trial = GrammarTrial(tokenizer.backend, shared_engine.info.vocab_size)
    with trial, served(create_app(shared_engine, tokenizer, metrics, trial=trial)) as server:
        yield server.port


@pytest.fixture(scope="session")
def http(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
