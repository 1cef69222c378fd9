"""Spans in a chain give, token for token and logit for logit, what the whole model gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipedec.errors import ProtocolError
from pipedec.model.execution import Execution
from pipedec.wire.messages import NO_PARENT, Batch, Close, Commit, Op, Open, Poison, Prefill, Reuse, Row, Rows
from tests.model.pipeline import GREEDY, Chain, Decoder, scattered
from tests.tiny import reference_greedy, tiny_model

PROMPT = tuple(int(token) for token in np.random.default_rng(5).integers(0, 256, 40))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"))


def plain_logits(folder: Path, tokens: tuple[int, ...]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize("chunk", [40, 7, 1])
@pytest.mark.parametrize("cuts", [(0, 4), (0, 1, 4), (0, 1, 2, 3, 4)])
def test_any_split_and_any_prefill_chunk_equal_generate(llama: Path, cuts: tuple[int, ...], chunk: int) -> None:
    for slots in (iter(range(256)), scattered()):
        decoder = Decoder(Chain(llama, cuts), 1, PROMPT, slots)
        decoder.prefill(chunk)
        assert decoder.generate(16) == reference_greedy(llama, PROMPT, 16)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"tied": True, "kv_heads": 1}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("mistral", {"sliding_window": 12}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
        ("olmo2", {}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("stablelm", {"use_parallel_residual": True}),
        ("starcoder2", {"sliding_window": 10}),
    ],
)
def test_families_equal_generate(tmp_path: Path, family: str, config: dict[str, object]) -> None:
    folder = tiny_model(tmp_path, family, **config)  # type: ignore[arg-type]
    expected = reference_greedy(folder, PROMPT, 16)
    assert len(set(expected)) > 4
    for slots in (iter(range(256)), scattered()):
        decoder = Decoder(Chain(folder, (0, 2, 4)), 1, PROMPT, slots)
        decoder.prefill(16)
        assert decoder.generate(16) == expected


def test_requests_in_one_batch_do_not_see_each_other(llama: Path) -> None:
    chain, slots = Chain(llama, (0, 2, 4)), scattered()
    decoders = [Decoder(chain, i, PROMPT[i : i + 5 * i + 3], slots) for i in range(5)]
    for decoder in decoders:
        decoder.prefill(4)
    for _ in range(11):
        steps = [decoder.row() for decoder in reversed(decoders)]
        hidden = chain.run([op for ops, _ in steps for op in ops], [row for _, row in steps])
        for decoder, output in zip(reversed(decoders), hidden, strict=True):
            decoder.decide(output)
    for decoder in decoders:
        assert decoder.tokens == reference_greedy(llama, decoder.prompt, 12)


def test_a_batch_mixes_prefill_of_one_request_with_rows_of_another(llama: Path) -> None:
    chain, slots = Chain(llama, (0, 1, 4)), scattered()
    first = Decoder(chain, 1, PROMPT, slots)
    first.prefill(64)
    first.generate(4)
    ops, row = first.row()
    second = tuple(next(slots) for _ in range(20))
    hidden = chain.run([*ops, Open(2, GREEDY, 20), Prefill(2, 0, PROMPT[:20], second)], [row])
    first.decide(hidden[-1])
    assert first.tokens == reference_greedy(llama, PROMPT, 5)
    logits = chain.spans[-1].head(hidden[:20])
    assert torch.allclose(logits, plain_logits(llama, PROMPT[:20]), atol=1e-4)


def tree(first_slot: int) -> tuple[list[Row], list[tuple[int, ...]]]:
    """A tree of three levels under the prompt, and the path of tokens down to each node."""
    parents = [NO_PARENT, NO_PARENT, 0, 0, 1, 2, 2, 4, 3]
    rows: list[Row] = []
    paths: list[tuple[int, ...]] = []
    for node, parent in enumerate(parents):
        above = rows[parent] if parent != NO_PARENT else None
        ancestors = (*above.ancestors, above.slot) if above else ()
        token = 10 + 20 * node
        paths.append((*(paths[parent] if above else ()), token))
        slot = first_slot + (node * 5) % 9
        rows.append(Row(1, node, parent, token, len(PROMPT) + len(ancestors), slot, ancestors))
    return rows, paths


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("first_slot", [len(PROMPT), 200])
def test_each_tree_row_is_a_plain_forward_over_its_path(llama: Path, together: bool, first_slot: int) -> None:
    chain = Chain(llama, (0, 2, 4))
    rows, paths = tree(first_slot)
    chain.run([Open(1, GREEDY, len(PROMPT)), Prefill(1, 0, PROMPT, tuple(range(len(PROMPT))))])
    logits = chain.logits(rows=rows) if together else torch.cat([chain.logits(rows=[row]) for row in rows])
    for path, row_logits in zip(paths, logits, strict=True):
        assert torch.allclose(row_logits, plain_logits(llama, PROMPT + path)[-1], atol=1e-4)


def test_dead_rows_may_be_dropped_at_any_stage(llama: Path) -> None:
    chain = Chain(llama, (0, 1, 2, 4))
    rows, paths = tree(200)
    chain.run([Open(1, GREEDY, len(PROMPT)), Prefill(1, 0, PROMPT, tuple(range(len(PROMPT))))])
    hidden = chain.run(rows=rows, alive=[None, [0, 2, 3, 5, 6, 8], [0, 2, 6]])
    for node, logits in zip([0, 2, 6], chain.spans[-1].head(hidden), strict=True):
        assert torch.allclose(logits, plain_logits(llama, PROMPT + paths[node])[-1], atol=1e-4)


def test_ops_of_a_batch_without_alive_rows_still_count(llama: Path) -> None:
    chain = Chain(llama, (0, 2, 4))
    decoder = Decoder(chain, 1, PROMPT, scattered())
    decoder.prefill(64)
    decoder.generate(3)
    ops, row = decoder.row()
    dead = row._replace(slot=next(decoder.slots), token=0)
    assert chain.run(ops, [dead], alive=[[], []]).shape == (0, 32)
    decoder.decide(chain.run([], [row])[0])
    assert decoder.generate(8) == reference_greedy(llama, PROMPT, 8)


@pytest.mark.parametrize("order", ["contiguous", "scattered"])
def test_freed_slots_can_be_poisoned_and_used_again(llama: Path, order: str) -> None:
    chain = Chain(llama, (0, 2, 4), num_slots=64)
    expected = reference_greedy(llama, PROMPT, 12)
    for request in range(4):  # each needs most of the pool
        slots = iter(range(64)) if order == "contiguous" else scattered(64, seed=request)
        decoder = Decoder(chain, request, PROMPT, slots)
        decoder.prefill(16)
        assert decoder.generate(12) == expected
        chain.run([Close(request), Poison(tuple(range(64)))])
        assert all(torch.isnan(span.pool.keys).all() for span in chain.spans)


def test_a_poisoned_sibling_harms_nobody(llama: Path) -> None:
    chain = Chain(llama, (0, 2, 4))
    rows, paths = tree(len(PROMPT))
    chain.run([Open(1, GREEDY, len(PROMPT)), Prefill(1, 0, PROMPT, tuple(range(len(PROMPT))))])
    chain.run(rows=rows[:5])
    chain.run([Commit(1, (rows[0].slot,)), Poison((rows[1].slot, rows[4].slot))])
    followers = [rows[i]._replace(ancestors=rows[i].ancestors[1:]) for i in (5, 6, 8)]
    logits = chain.logits(rows=followers)
    for i, row_logits in zip((5, 6, 8), logits, strict=True):
        assert torch.allclose(row_logits, plain_logits(llama, PROMPT + paths[i])[-1], atol=1e-4)


def test_slots_of_an_abandoned_pass_are_not_read_in_place(llama: Path) -> None:
    chain = Chain(llama, (0, 4))
    (span,) = chain.spans
    chain.run([Open(1, GREEDY, len(PROMPT)), Prefill(1, 0, PROMPT, tuple(range(len(PROMPT))))])
    rows, paths = tree(len(PROMPT))
    chain.run([Poison(tuple(row.slot for row in rows))])
    batch = Batch(0, 0, (), Rows.of([rows[1], rows[4]]))
    assert span.execute(batch, None, goes_on=lambda layer: layer < 2) is None
    logits = chain.logits(rows=[rows[0], rows[2]])
    assert torch.allclose(logits[1], plain_logits(llama, PROMPT + paths[2])[-1], atol=1e-4)


def test_what_a_closed_request_left_behind_is_never_read(llama: Path) -> None:
    chain = Chain(llama, (0, 2, 4), num_slots=128)
    Decoder(chain, 1, PROMPT, iter(range(20, 128))).prefill(64)
    for span in chain.spans:
        span.pool.fill(torch.arange(40, 60), float("inf"))  # as a model that overflows would leave it
    chain.run([Close(1)])
    for slots in (iter(range(0, 128, 1)), iter(range(0, 128, 2))):
        decoder = Decoder(chain, 2, PROMPT[:25], slots)
        decoder.prefill(64)
        assert decoder.generate(12) == reference_greedy(llama, PROMPT[:25], 12)
        chain.run([Close(2)])


@pytest.mark.parametrize("attention", ["sdpa", "dense", "invariant"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_a_request_goes_on_from_what_another_computed(llama: Path, attention: str, closed: bool) -> None:
    """Also where a third one was computed meanwhile, whose own slots lie on either side."""
    buckets = (1, 8, 64) if attention == "dense" else ()
    chain = Chain(llama, (0, 2, 4), 256, Execution(attention, buckets))  # type: ignore[arg-type]
    first = Decoder(chain, 1, PROMPT, iter(range(20, 200)))
    first.prefill(16)
    first.generate(8)
    if closed:
        chain.run([Close(1)])
    third = Decoder(chain, 3, PROMPT[5:], iter([*range(20), *range(200, 256)]))
    third.prefill(64)
    assert third.generate(8) == reference_greedy(llama, PROMPT[5:], 8)
    said = (*PROMPT, *first.tokens[:7])  # its slots hold the prompt and what was said, but for the last token
    for request, length in ((4, 30), (5, len(said))):
        prompt = (*said[:length], 17, 99)
        decoder = Decoder(chain, request, prompt, iter(range(120 + 30 * (request - 4), 150 + 30 * (request - 4))))
        decoder.prefill(8, reused=first.used[:length])
        assert decoder.generate(8) == reference_greedy(llama, prompt, 8)
        chain.run([Close(request)])


def test_reset_forgets_requests_and_what_they_left(llama: Path) -> None:
    chain = Chain(llama, (0, 4))
    Decoder(chain, 1, PROMPT, scattered(seed=1)).prefill(64)
    chain.spans[0].pool.fill(torch.arange(256), float("nan"))
    chain.spans[0].reset()
    decoder = Decoder(chain, 1, PROMPT, iter(range(100, 256)))
    decoder.prefill(64)
    assert decoder.generate(6) == reference_greedy(llama, PROMPT, 6)


ROW = Row(1, 0, NO_PARENT, 5, 3, 10, ())
IMPOSSIBLE: list[tuple[str, tuple[Op, ...], tuple[Row, ...]]] = [
    ("open already", (Open(1, GREEDY, 1),), ()),
    ("not open", (Commit(2, (5,)),), ()),
    ("not open", (Close(1), Close(1)), ()),
    ("not open", (), (ROW._replace(request=2),)),
    ("do not follow", (Prefill(1, 2, (1,), (5,)),), ()),
    ("do not follow", (Reuse(1, 2, (1,), (2,)),), ()),
    ("not open", (Reuse(2, 0, (1,), (0,)),), ()),
    ("slots lie in", (Reuse(1, 3, (1,), (64,)),), ()),
    ("tokens lie in", (Reuse(1, 3, (320,), (5,)),), ()),
    ("do not follow", (Prefill(1, 3, (1, 2), (5,)),), ()),
    ("slots lie in", (Prefill(1, 3, (1,), (64,)),), ()),
    ("slots lie in", (Commit(1, (-1,)),), ()),
    ("slots lie in", (Poison((64,)),), ()),
    ("slots lie in", (), (ROW._replace(slot=64),)),
    ("slots lie in", (), (ROW._replace(position=4, ancestors=(-1,)),)),
    ("tokens lie in", (Prefill(1, 3, (320,), (5,)),), ()),
    ("tokens lie in", (), (ROW._replace(token=-1),)),
    ("positions lie in", (), (ROW._replace(position=512),)),
    ("longer than", (Prefill(1, 3, (1,) * 510, (5,) * 510),), ()),
    ("number of committed", (), (ROW._replace(position=4),)),
]


@pytest.mark.parametrize(("problem", "ops", "rows"), IMPOSSIBLE)
def test_an_impossible_batch_changes_nothing(
    llama: Path, problem: str, ops: tuple[Op, ...], rows: tuple[Row, ...]
) -> None:
    span = Chain(llama, (0, 4), num_slots=64).spans[0]
    span.execute(Batch(0, 0, (Open(1, GREEDY, 3), Prefill(1, 0, (1, 2, 3), (0, 1, 2)))), None)
    before = span.pool.keys.clone()
    opening = (Open(9, GREEDY, 1), Commit(1, (40,))) if not rows else ()
    with pytest.raises(ProtocolError, match=problem):
        span.execute(Batch(0, 1, (*ops, *opening), Rows.of(rows)), None)
    assert torch.equal(before, span.pool.keys)
    expected = plain_logits(llama, (1, 2, 3, 5))[-1]
    hidden = span.execute(Batch(0, 2, (Open(9, GREEDY, 1),), Rows.of([ROW])), None)
    assert torch.allclose(span.head(hidden)[0], expected, atol=1e-4)


def test_hidden_states_must_fit_the_batch(llama: Path) -> None:
    first, last = Chain(llama, (0, 2, 4)).spans
    batch = Batch(0, 0, (Open(1, GREEDY, 2), Prefill(1, 0, (1, 2), (0, 1))))
    for span, hidden in (
        (first, torch.zeros(2, 32)),
        (last, None),
        (last, torch.zeros(3, 32)),
        (last, torch.zeros(2, 8)),
    ):
        with pytest.raises(ProtocolError, match="hidden states"):
            span.execute(batch, hidden)


@pytest.mark.parametrize("alive", [[1, 2], [0, 1, 5], [0, 1, 3, 2], [-1, 0, 1]])
def test_alive_rows_are_checked(llama: Path, alive: list[int]) -> None:
    span = Chain(llama, (0, 4)).spans[0]
    ops = (Open(1, GREEDY, 2), Prefill(1, 0, (1, 2), (0, 1)))
    rows = Rows.of([Row(1, i, NO_PARENT, 3 + i, 2, 10 + i, ()) for i in range(3)])
    with pytest.raises(ProtocolError, match="alive rows"):
        span.execute(Batch(0, 0, ops, rows), None, np.array(alive))
