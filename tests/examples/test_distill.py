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

from examples.smollm2.answers import HELD_OUT, Answer, Target, collect, save
from examples.smollm2.cache import GrowingCache
from examples.smollm2.corpus import WIDTHS, Corpus
from examples.smollm2.prompts import Prompts
from examples.smollm2.student import CAUSAL, first_student, grow, load_student, save_student
from examples.smollm2.training import STATE, CrossEntropy, Learner, Training, measure, train
from pipedec.model.loader import SpanModel
from tests.tiny import reference_greedy, tiny_model

CPU = torch.device("cpu")
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
    have = int(Corpus(before, CPU).answers.sum())
    assert have >= 300
    assert len(gather(target, model, data, tokens=have + 1)) == 1
    assert sorted(data.glob("shard-*.npz"))[:-1] == before


def test_a_step_is_made_of_what_was_saved(tmp_path: Path) -> None:
    some = [
        Answer([1, 2], [3], np.array([[3, 4]], np.uint16), np.log(np.array([[0.6, 0.2]])).astype(np.float16)),
        Answer([7], [8, 9, 5], np.array([[8, 1], [9, 1], [5, 6]], np.uint16), np.zeros((3, 2), np.float16)),
    ]
    files = [tmp_path / "shard-00000.npz", tmp_path / "shard-00001.npz"]
    save(files[0], some[:1])
    save(files[1], some[1:])
    step = Corpus(files, CPU).step(np.array([1, 0]))
    assert step.ids[0].tolist() == [7, 8, 9]
    assert step.ids[1, :2].tolist() == [1, 2]
    assert step.ids.flatten()[step.rows].tolist() == [7, 8, 9, 2]  # each followed by what was said
    assert step.said.tolist() == [8, 9, 5, 3]
    assert step.top_tokens.tolist() == [[8, 1], [9, 1], [5, 6], [3, 4]]
    assert step.weights.numpy() == pytest.approx(np.array([[0.5, 0.5]] * 3 + [[0.75, 0.25]]), abs=1e-3)


def test_an_epoch_is_every_answer_once(data: Path) -> None:
    corpus = Corpus(sorted(data.glob("shard-*.npz")), CPU)
    updates = list(corpus.updates(np.random.default_rng(1), tokens=60))
    assert sorted(np.concatenate(updates)) == np.flatnonzero(corpus.answers > 1).tolist()
    assert all(len(texts) == 1 or corpus.answers[texts].sum() <= 60 for texts in updates)
    steps = corpus.steps(np.arange(len(corpus)), together=100)
    assert sorted(np.concatenate(steps)) == list(range(len(corpus)))
    assert all(len(texts) == 1 or corpus.lengths[texts].max() * len(texts) <= 100 for texts in steps)


def test_what_pads_a_step_changes_nothing(model: Path, data: Path) -> None:
    corpus, draft = Corpus([data / HELD_OUT], CPU), first_student(model, [0, 1])
    head, texts = draft.lm_head.weight.detach(), np.arange(len(corpus))
    found = []
    for step in (corpus.step(texts), corpus.step(texts, even=700)):
        hidden = draft.model(input_ids=step.ids, use_cache=False).last_hidden_state.flatten(0, 1)[step.rows]
        loss: Any = CrossEntropy.apply(hidden, head, step.top_tokens, step.weights)  # type: ignore[no-untyped-call]
        found.append((loss.item(), torch.autograd.grad(loss, draft.model.norm.weight)[0]))
    assert len(step.rows) == 700
    assert step.ids.shape[1] % WIDTHS == 0
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


def test_the_gradient_of_cross_entropy_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 8, generator=generator, requires_grad=True)
    head, top = torch.randn(30, 8, generator=generator), torch.arange(15).view(5, 3)
    weights = torch.rand(5, 3, generator=generator).softmax(-1)
    loss: Any = 3 * CrossEntropy.apply(hidden, head, top, weights)  # type: ignore[no-untyped-call]
    expected = -3 * (weights * (hidden @ head.T).log_softmax(-1).gather(-1, top)).sum()
    assert loss.item() == pytest.approx(expected.item())
    (gradient,), (wanted,) = (torch.autograd.grad(value, hidden) for value in (loss, expected))
    assert torch.allclose(gradient, wanted, atol=1e-6)


def test_a_cache_for_graphs_holds_what_one_without_does() -> None:
    """Attention sees multiples of so many tokens; what lies beyond is hidden, and what one text adds is all texts'."""
    generator, found = torch.Generator().manual_seed(1), []
    pieces = [torch.randn(texts, 2, new, 4, generator=generator) for texts, new in ((1, 1), (1, 5), (3, 4), (3, 1))]
    query = torch.randn(3, 2, 1, 4, generator=generator)
    for graphed in (False, True):
        cache = GrowingCache(1, 3, 90, CPU, graphed)
        for _ in range(2):  # the second time in a room that is no longer empty
            cache.begin(torch.tensor([[0] * 6 + [1, 1, 0, 0], [0] * 10, [0] * 6 + [1, 0, 0, 0]]).bool())
            for piece in pieces:
                bias = cache.bias(len(piece), piece.shape[2], torch.float32)
                keys, values = cache.update(piece, -piece, 0)
                assert bias.shape[-1] == keys.shape[2] == (64 if graphed else cache.size + piece.shape[2])
                cache.added(piece.shape[2])
        found.append(torch.nn.functional.scaled_dot_product_attention(query, keys, values, bias))
    assert torch.allclose(*found)


def test_held_out_prompts_are_never_asked() -> None:
    several = list(islice(Prompts(random.Random(1), held_out=()), 300))
    assert len(set(several)) == 300
    out = {prompt for prompt in several if "Python" in prompt}
    assert out
    assert not out & set(islice(Prompts(random.Random(1), out), 300))


def test_training_brings_the_draft_nearer_and_goes_on_where_it_stopped(model: Path, data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    half = dataclasses.replace(PLAN, tokens=PLAN.tokens // 2)
    train(model, data, tmp_path / "draft", half, "cpu", told.append)
    first = loss(told)
    train(model, data, tmp_path / "draft", PLAN, "cpu", told.append)
    assert told[-1].startswith("6,")
    assert loss(told) < first
    student = load_student(model, tmp_path / "draft")
    assert measure(student, Corpus([data / HELD_OUT], CPU))[16] > 0
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


def test_attention_without_a_mask_is_causal(model: Path) -> None:
    draft, ids = first_student(model, [0, 1]), torch.arange(5, 65).view(3, 20)
    draft.set_attn_implementation("eager")
    masked = draft(input_ids=ids).logits
    draft.set_attn_implementation(CAUSAL)
    assert torch.allclose(draft(input_ids=ids).logits, masked, atol=1e-4)


def test_a_draft_grows_by_layers_that_change_nothing_until_they_learn(model: Path, data: Path, tmp_path: Path) -> None:
    draft = first_student(model, [0, 1])
    save_student(draft, tmp_path, torch.float32)
    (data / STATE).unlink(missing_ok=True)
    ids = torch.arange(5, 25)[None]
    before = draft(input_ids=ids).logits
    grow(draft, 1)
    assert torch.equal(draft(input_ids=ids).logits, before)
    plan = dataclasses.replace(PLAN, tokens=1, start=tmp_path, grow=1)
    train(model, data, tmp_path / "grown", plan, "cpu", lambda _: None)
    train(model, data, tmp_path / "grown", dataclasses.replace(plan, tokens=300), "cpu", lambda _: None)  # goes on
    grown = load_student(model, tmp_path / "grown")
    assert len(grown.model.layers) == 3
    assert grown.model.layers[2].self_attn.o_proj.weight.any()


@pytest.mark.gpu
def test_graphs_continue_texts_as_the_model_does(model: Path) -> None:
    on_gpu = Target(AutoModelForCausalLM.from_pretrained(model).eval().cuda(), end=2, seed=3)
    for prompts in ([[5, 6, 7], list(range(30, 50)), [9]], [[8, 6, 7, 8], [8, 2, 3], [8] * 30]):
        for answer in on_gpu.continue_all(prompts, [0.0, 0.0, 0.0], 70):
            expected = reference_greedy(model, answer.prompt, 70)
            assert answer.tokens == expected[: len(answer.tokens)]
            assert len(answer.tokens) == 70 or answer.tokens[-1] == 2


@pytest.mark.gpu
def test_graphs_learn_what_a_cpu_learns(model: Path, data: Path) -> None:
    plan = dataclasses.replace(PLAN, vocabulary=0, low_precision=False)
    losses = []
    for device in (CPU, torch.device("cuda")):
        corpus = Corpus(sorted(data.glob("shard-*.npz")), device)
        learner = Learner(first_student(model, [0, 1]).to(device), plan, device)
        texts = np.flatnonzero(corpus.answers > 1)[:8]
        losses.append([learner.learn(corpus, texts, 1e-3).item() for _ in range(6)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][5] < losses[0][0]


def loss(told: list[str]) -> float:
    return float(told[-1].split("loss ")[1].split(",")[0])
