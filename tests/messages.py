"""Hypothesis strategies of everything that may travel."""

from __future__ import annotations

from hypothesis import strategies as st

from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import (
    Batch,
    Cancel,
    Close,
    Commit,
    Decision,
    Formation,
    Heartbeat,
    Joined,
    Open,
    Poison,
    Prefill,
    Refused,
    Register,
    Reuse,
    Row,
    Rows,
    Shutdown,
    Started,
    TokenLogprobs,
    Verdict,
)

ids = st.integers(0, 2**31 - 1)
counts = st.integers(0, 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
id_lists = st.lists(ids, max_size=8).map(tuple)
weights = st.lists(st.tuples(ids, numbers), max_size=4).map(tuple)
texts = st.text(st.characters(codec="utf-8"), max_size=40)

sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_k=ids,
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=weights,
    min_tokens=ids,
    end_tokens=id_lists,
    seed=counts,
    logprobs=st.none() | st.integers(0, 20),
    grammar=texts,
)


@st.composite
def prompts(draw: st.DrawFn) -> Prefill | Reuse:
    pairs = draw(st.lists(st.tuples(ids, ids), min_size=1, max_size=8))
    tokens, slots = zip(*pairs, strict=True)
    return draw(st.sampled_from((Prefill, Reuse)))(draw(ids), draw(ids), tokens, slots)


ops = st.one_of(
    st.builds(Open, ids, sampling, counts),
    prompts(),
    st.builds(Commit, ids, id_lists),
    st.builds(Close, ids),
    st.builds(Poison, id_lists),
)
rows = st.lists(st.builds(Row, ids, ids, st.integers(-1, 2**31 - 1), ids, ids, ids, id_lists), max_size=8).map(Rows.of)
batches = st.builds(Batch, counts, counts, st.lists(ops, max_size=4).map(tuple), rows)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    tokens = draw(id_lists)
    entries = [draw(st.builds(TokenLogprobs, numbers, weights)) for _ in tokens]
    return Decision(draw(ids), tokens, tuple(entries) if draw(st.booleans()) else (), draw(texts), draw(texts))


spans = st.tuples(ids, ids).filter(lambda span: span[0] < span[1])
from_stage = st.one_of(
    st.builds(Register, ids, ids, spans, texts, texts, ids, texts, ids, texts),
    st.builds(Joined, counts, ids),
    st.builds(Started, counts, ids, counts),
    st.builds(Heartbeat, counts, ids, counts, weights),
)
from_head = st.one_of(
    st.builds(Formation, counts, texts, ids),
    st.builds(Cancel, counts, counts, st.lists(st.tuples(ids, ids), max_size=8).map(tuple)),
    st.builds(Heartbeat, counts, ids, counts, weights),
    st.builds(Refused, texts),
    st.builds(Shutdown, texts),
)
verdicts = st.builds(Verdict, counts, counts, st.lists(decisions(), max_size=4).map(tuple))
messages = st.one_of(batches, verdicts, from_stage, from_head)
