"""A request whose logits are not numbers fails, or whose grammar does; those beside it in the batch do not care."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from pipedec.errors import ProtocolError
from pipedec.model.grammar import Grammars
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import NO_PARENT, Batch, Decision, Op, Open, Prefill, Row, Rows
from stage_service.verifier import Verifier

VOCABULARY = 8


def head(hidden: torch.Tensor) -> torch.Tensor:
    """The likeliest token is the number in `hidden`; NaN stays NaN."""
    spoilt = hidden.isnan()
    logits = torch.nn.functional.one_hot(hidden.nan_to_num().long()[:, 0], VOCABULARY).float()
    return logits.masked_fill(spoilt, float("nan"))


def verify(verifier: Verifier, step: int, rows: list[Row], hidden: list[float], *ops: Op) -> tuple[Decision, ...]:
    batch = Batch(1, step, ops, Rows.of(rows))
    return verifier.verify(batch, torch.tensor(hidden)[:, None], {row: row for row in range(len(rows))}, head)


def letters() -> Grammars:
    """Of a tokenizer whose tokens are the letters a to h, and a special one for which the model has no row."""
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate("abcdefgh")}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return Grammars(backend, VOCABULARY)


def test_one_request_fails_and_the_other_goes_on() -> None:
    verifier = Verifier(VOCABULARY)
    opened = [Open(request, SamplingParams(), 1) for request in (1, 2)]
    rows = [Row(1, 0, NO_PARENT, 5, 0, 0, ()), Row(2, 0, NO_PARENT, 5, 0, 1, ()), Row(1, 1, 0, 3, 1, 2, (0,))]
    told = verify(verifier, 0, rows, [3.0, 4.0, float("nan")], *opened)
    assert told[1] == Decision(2, (4,))
    assert told[0].request == 1
    assert told[0].tokens == (3,), "what was decided before stays"
    assert told[0].failure == "the logits are nan: the model overflows in this dtype"
    after = [Row(1, 2, 1, 3, 2, 3, (0, 2)), Row(2, 1, 0, 4, 1, 4, (1,))]
    assert verify(verifier, 1, after, [3.0, 6.0]) == (Decision(2, (6,)),), "nothing follows a failure"


def test_logits_of_all_rows_at_once_decide_the_same() -> None:
    """A chain of three that all match, a sibling that does not, and a request of which nothing is decided."""
    rows = [
        *(Row(1, 0, NO_PARENT, 5, 0, 0, ()), Row(1, 1, 0, 3, 1, 1, (0,)), Row(1, 2, 0, 4, 1, 2, (0,))),
        *(Row(1, 3, 1, 6, 2, 3, (1, 0)), Row(2, 7, 6, 1, 9, 4, ())),
    ]
    opened = [Open(request, SamplingParams(), 1) for request in (1, 2)]
    asked: list[int] = []

    def counting(hidden: torch.Tensor) -> torch.Tensor:
        asked.append(len(hidden))
        return head(hidden)

    told = []
    for together in (0, 4, 5):
        verifier = Verifier(VOCABULARY, together=together)
        batch = Batch(1, 0, tuple(opened), Rows.of(rows))
        hidden = torch.tensor([3.0, 6.0, 2.0, 7.0, 1.0])[:, None]
        told.append(verifier.verify(batch, hidden, {row: row for row in range(5)}, counting))
    assert told == [(Decision(1, (3, 6, 7)),)] * 3
    assert asked == [1, 1, 1, 1, 1, 1, 5]


def formed(grammar: str, request: int = 1) -> Open:
    return Open(request, SamplingParams(grammar=grammar, end_tokens=(7,)), 1)


def test_a_request_with_a_grammar_needs_a_tokenizer_that_can_be_read() -> None:
    with pytest.raises(ProtocolError, match="tokenizer cannot be read"):
        verify(Verifier(VOCABULARY), 0, [Row(1, 0, NO_PARENT, 5, 0, 0, ())], [3.0], formed("start: /a/"))


def test_tokens_are_chosen_among_what_the_grammar_allows() -> None:
    """Of token texts a to h. A request beside it is free; one that comes with half of its answer goes on from there."""
    verifier = Verifier(VOCABULARY, grammars=letters())
    opened = (formed("start: /cab/"), Open(2, SamplingParams(), 1), formed("start: /cab/", request=3))
    ops = (*opened, Prefill(3, 0, (5, 2), (2, 3)))
    rows = [Row(1, 0, NO_PARENT, 5, 0, 0, ()), Row(2, 0, NO_PARENT, 5, 0, 1, ()), Row(3, 0, NO_PARENT, 0, 2, 4, ())]
    assert verify(verifier, 0, rows, [4.0, 4.0, 4.0], *ops) == (
        *(Decision(1, (2,)), Decision(2, (4,)), Decision(3, (1,))),
    )
    chain = [Row(1, 1, 0, 2, 1, 5, (0,)), Row(1, 2, 1, 0, 2, 6, (5, 0)), Row(1, 3, 2, 1, 3, 7, (6, 5, 0))]
    assert verify(verifier, 1, chain, [4.0, 4.0, 4.0]) == (Decision(1, (0, 1, 7)),)
    assert verify(verifier, 2, [Row(1, 4, 3, 7, 4, 8, ())], [4.0]) == (Decision(1, (4,)),), "beyond the end all is free"


def test_a_grammar_that_fails_refuses_its_request_alone() -> None:
    verifier = Verifier(VOCABULARY, grammars=letters())
    rows = [Row(1, 0, NO_PARENT, 5, 0, 0, ()), Row(2, 0, NO_PARENT, 5, 0, 1, ())]
    told = verify(verifier, 0, rows, [4.0, 3.0], formed("start: ("), Open(2, SamplingParams(), 1))
    assert told[0].tokens == ()
    assert told[0].failure == ""
    assert told[0].refusal.startswith("the answer's grammar cannot be followed any further: 1(9): Expected")
    assert told[1] == Decision(2, (3,))
