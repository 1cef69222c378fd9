"""A tiny target, and what it answered."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.recording import Prompt, Recorder, Transcript
from tests.tiny import tiny_model

VOCABULARY = 320


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), layers=3, vocab=VOCABULARY, tied=True)


@pytest.fixture(scope="module")
def transcripts(model: Path) -> list[Transcript]:
    rng = random.Random(5)
    prompts = [tuple(rng.randrange(256) for _ in range(length)) for length in (1, 9, 30, 14)]
    return Recorder(model).record([(Prompt("", "tiny", "train"), prompt) for prompt in prompts], max_tokens=32)
