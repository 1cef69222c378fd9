"""Programs of fixed shape: what they are asked between their parts, what they give, what is run without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._dynamo

from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.layers import Layers
from pipedec.model.loader import SpanModel
from pipedec.wire.messages import NO_PARENT, Batch, Open, Prefill, Reuse, Row, Rows
from tests.model.pipeline import GREEDY
from tests.tiny import tiny_model

PROMPT = (5, 6, 7, 8, 9)
TREE = [Row(1, i, NO_PARENT if i == 0 else 0, 20 + i, 5 + (i > 0), 40 + i, () if i == 0 else (40,)) for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def span(folder: Path) -> SpanModel:
    return SpanModel.load(folder, (0, 4), dtype=torch.float32)


def opened(executor: SpanExecutor) -> SpanExecutor:
    executor.execute(Batch(0, 0, (Open(1, GREEDY, 5), Prefill(1, 0, PROMPT, (9, 3, 5, 1, 30)))), None)
    return executor


def batch(rows: int) -> Batch:
    return Batch(0, 1, (), Rows.of(TREE[:rows]))


def test_every_number_of_rows_gives_what_layers_one_by_one_give(span: SpanModel) -> None:
    plain, static = (opened(SpanExecutor(span, 64, how)) for how in (None, Execution("dense", (1, 2, 4))))
    for rows in (5, 3, 1, 4, 2, 5):
        expected, actual = plain.execute(batch(rows), None), static.execute(batch(rows), None)
        assert expected is not None
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_what_is_given_stays_when_the_memory_is_used_again(span: SpanModel) -> None:
    executor = opened(SpanExecutor(span, 64, Execution("dense", (4,))))
    head = executor.of_rows(lambda rows: (executor.head(rows), rows.sum(1)))
    hidden = executor.execute(batch(3), None)
    assert hidden is not None
    logits, sums = head(hidden)
    before = [part.clone() for part in (hidden, logits, sums)]
    executor.execute(batch(1), None)
    head(torch.full_like(hidden, torch.nan))
    assert all(torch.equal(part, kept) for part, kept in zip((hidden, logits, sums), before, strict=True))
    torch.testing.assert_close(logits, executor.head(hidden), atol=1e-4, rtol=0)


def test_it_may_be_stopped_between_its_parts(span: SpanModel) -> None:
    executor = opened(SpanExecutor(span, 64, Execution("dense", (4,))))
    asked: list[int] = []
    assert executor.execute(batch(2), None, goes_on=lambda layer: asked.append(layer) is None) is not None
    assert asked == [0, 3]
    assert executor.execute(batch(2), None, goes_on=lambda layer: layer == 0) is None
    assert executor.execute(batch(2), None) is not None


@pytest.mark.parametrize("execution", [None, Execution("dense", (2,))], ids=["layers", "programs"])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_it_is_asked_before_the_last_layer_at_the_latest(
    folder: Path, layers: int, execution: Execution | None
) -> None:
    """However few there are: else nobody is told before the end that the end is near."""
    executor = opened(SpanExecutor(SpanModel.load(folder, (0, layers), dtype=torch.float32), 64, execution))
    asked: list[int] = []
    executor.execute(batch(2), None, goes_on=lambda layer: asked.append(layer) is None)
    assert asked[-1] == layers - 1


def test_requests_that_share_their_slots_still_have_a_program(span: SpanModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they read more keys than there are slots."""
    executor = SpanExecutor(span, 64, Execution("dense", (1, 2, 4, 8)))
    prompt, slots = tuple(range(3, 33)), tuple(range(30))
    executor.execute(Batch(0, 0, (Open(0, GREEDY, 31), Prefill(0, 0, prompt, slots))), None)
    opened = [op for request in range(1, 5) for op in (Open(request, GREEDY, 31), Reuse(request, 0, prompt, slots))]
    rows = [Row(request, 0, NO_PARENT, 40, 30, 40 + request, ()) for request in range(1, 5)]
    monkeypatch.setattr(executor, "_run", None)  # layer by layer
    hidden = executor.execute(Batch(0, 1, tuple(opened), Rows.of(rows)), None)
    assert hidden is not None
    torch.testing.assert_close(hidden, hidden[:1].expand(4, -1))


def test_progress_is_told_of_every_program(span: SpanModel) -> None:
    told: list[float] = []
    SpanExecutor(span, 64, Execution("dense", (1, 2)), told.append)
    assert told == [0.5, 1.0]


@pytest.mark.parametrize(
    "wrong", [{"buckets": (1,)}, {"attention": "dense", "buckets": (2, 1)}, {"graphs": True}, {"fused": True}], ids=str
)
def test_contradictions_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"bucket|fixed shape"):
        Execution(**wrong)  # type: ignore[arg-type]


def test_the_kernel_runs_a_whole_span(span: SpanModel) -> None:
    plain, static = (opened(SpanExecutor(span, 64, how)) for how in (None, Execution("triton", (4,))))
    expected, actual = plain.execute(batch(3), None), static.execute(batch(3), None)
    assert expected is not None
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


class Settings:
    """Those of torch's compiler that torch 2.6 has, of the ones that are set."""

    __slots__ = ("allow_unspec_int_on_nn_module", "cache_size_limit")


def test_what_layers_are_compiled_with_is_known_to_the_oldest_torch(
    span: SpanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._dynamo, "config", Settings())
    monkeypatch.setattr(torch, "compile", lambda layer, **_: layer)
    assert len(Layers(span, fused=True)) == 4
