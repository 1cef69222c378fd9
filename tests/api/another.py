"""A model of another family behind an endpoint of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import openai
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from draft_service.generation import EngineInfo
from draft_service.grammar_trial import GrammarTrial
from draft_service.text import Tokenizer
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import MODEL, ScriptedEngine, served


class Another(NamedTuple):
    engine: ScriptedEngine
    client: openai.OpenAI

    def say(self, text: str) -> None:
        """Make this the script, in the model's own tokens, with the end token after it."""
        backend = self.engine.tokenizer.backend
        self.engine.script = [*backend.encode(text, add_special_tokens=False).ids, *self.engine.tokenizer.end_tokens]


@contextmanager
def another(tokenizer: Tokenizer, context: int = 4096) -> Iterator[Another]:
    engine = ScriptedEngine(tokenizer, info=EngineInfo(MODEL, context, 262, ((0, 5),)))
    trial = GrammarTrial(tokenizer.backend, 262)
    app = create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL), trial=trial)
    with trial, served(app) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
            yield Another(engine, client)
