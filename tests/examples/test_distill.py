"""Distilling a draft, on a tiny target: what is collected is the target's own, and what is trained fits it."""

from __future__ import annotations

import dataclasses
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.smollm2.answers import HELD_OUT, Answer, Target, collect, load, save
from examples.smollm2.prompts import Prompts
from examples.smollm2.student import load_student
from examples.smollm2.training import STATE, Training, measure, train
from pipedec.model.loader import SpanModel
from tests.tiny import reference_greedy, tiny_model

PLAN = Training(
    layers=[0, 1], tokens=6000, batch_tokens=400, learning_rate=5e-3, vocabulary=64, seed=1, low_precision=True
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), layers=4, tied=True)


@pytest.fixture(scope="module")
def target(model: Path) -> Target:
    return Target(AutoModelForCausalLM.from_pretrained(model).eval(), end=2, seed=3)


@pytest.fixture(scope="module")
def data(model: Path, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    gather(target, model, folder, tokens=300)
    return folder


def gather(target: Target, model: Path, folder: Path, tokens: int) -> list[str]:
    told: list[str] = []
    collect(
        target,
        AutoTokenizer.from_pretrained(model),
        folder,
        tokens=tokens,
        batch=4,
        seed=1,
        held_out={"Why is the sky blue?"},
        tell=told.append,
    )
    return told


def test_greedy_answers_are_the_targets_own_whatever_else_is_in_the_batch(model: Path, target: Target) -> None:
    prompts = [[5, 6, 7], list(range(30, 50)), [9]]
    for answer in target.continue_all(prompts, [0.0, 0.0, 0.0], 12):
        expected = reference_greedy(model, answer.prompt, 12)
        assert answer.tokens == expected[: len(answer.tokens)]
        assert len(answer.tokens) == 12 or answer.tokens[-1] == 2
        assert answer.top_tokens[:, 0].tolist() == answer.tokens
        assert (np.diff(answer.top_logprobs.astype(np.float32), axis=1) <= 0).all()


def test_what_was_collected_is_gone_on_with(model: Path, target: Target, data: Path) -> None:
    before = sorted(data.glob("shard-*.npz"))
    assert gather(target, model, data, tokens=300) == []
    have = sum(len(answer.tokens) for answer in load(before))
    assert have >= 300
    assert len(gather(target, model, data, tokens=have + 1)) == 1
    assert sorted(data.glob("shard-*.npz"))[:-1] == before


def test_shards_keep_answers(tmp_path: Path) -> None:
    kept = [
        Answer([1, 2], [3], np.array([[3, 4]], np.uint16), np.array([[-0.5, -1.5]], np.float16)),
        Answer([7], [8, 9], np.array([[8, 1], [9, 1]], np.uint16), np.zeros((2, 2), np.float16)),
    ]
    save(tmp_path / "shard-00000.npz", kept)
    for found, wanted in zip(load([tmp_path / "shard-00000.npz"]), kept, strict=True):
        assert (found.prompt, found.tokens) == (wanted.prompt, wanted.tokens)
        assert np.array_equal(found.top_tokens, wanted.top_tokens)
        assert np.array_equal(found.top_logprobs, wanted.top_logprobs)


def test_held_out_prompts_are_never_asked() -> None:
    several = list(islice(Prompts(random.Random(1), held_out=()), 300))
    out = {prompt for prompt in several if "Python" in prompt}
    assert out
    assert not out & set(islice(Prompts(random.Random(1), out), 300))


def test_training_brings_the_draft_nearer_and_goes_on_where_it_stopped(model: Path, data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    held_out = load([data / HELD_OUT])
    half = dataclasses.replace(PLAN, tokens=PLAN.tokens // 2)
    train(model, data, tmp_path / "draft", half, "cpu", told.append)
    first = loss(told)
    train(model, data, tmp_path / "draft", PLAN, "cpu", told.append)
    assert told[-1].startswith("6,")
    assert loss(told) < first
    student = load_student(model, tmp_path / "draft")
    assert measure(student, held_out, "cpu")[16] > 0
    span = SpanModel.load(tmp_path / "draft", (0, 2), dtype=torch.float32, first=True, last=True, ends=model)
    weights: Any = span.architecture.lm.state_dict()
    for name, trained in student.state_dict().items():
        if name.startswith("model.layers."):
            assert torch.equal(weights[name], trained), name


def test_training_starts_from_an_earlier_draft(model: Path, data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    for start, tokens in ((None, 1), (None, PLAN.tokens), (tmp_path, 1)):  # of one token: one update
        (data / STATE).unlink(missing_ok=True)
        train(model, data, tmp_path, dataclasses.replace(PLAN, tokens=tokens, start=start), "cpu", told.append)
    assert loss(told) < loss(told[:1])


def loss(told: list[str]) -> float:
    return float(told[-1].split("loss ")[1].split(",")[0])
