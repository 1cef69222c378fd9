"""An answer taken apart into reasoning and what is said, however it comes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draft_service.reasoning.reasoning_format import ReasoningFormat
from draft_service.reasoning.scanner import ReasoningScanner

FORMAT = ReasoningFormat("<think>", "</think>")
ALREADY, PERHAPS = True, False


def taken_apart(pieces: Sequence[str], *, has_begun: bool) -> tuple[str, str]:
    scanner = ReasoningScanner(FORMAT, has_begun=has_begun)
    parts = [scanner.push(piece) for piece in pieces]
    parts.append(scanner.flush())
    assert scanner.num_held == 0
    return "".join(reasoning for reasoning, _ in parts), "".join(said for _, said in parts)


@pytest.mark.parametrize(
    ("text", "has_begun", "expected"),
    [
        ("<think>\nHm.\n\nOr?\n</think>\n\nYes.", PERHAPS, ("Hm.\n\nOr?", "Yes.")),
        ("\n<think>Hm.</think>Yes.", PERHAPS, ("Hm.", "Yes.")),
        ("Hm.</think>\nYes.", ALREADY, ("Hm.", "Yes.")),
        ("<think>\nHm.</think>Yes.", ALREADY, ("Hm.", "Yes.")),
        (" Yes. <think>Hm.</think>", PERHAPS, ("", " Yes. <think>Hm.</think>")),
        ("<thinking>Yes.", PERHAPS, ("", "<thinking>Yes.")),
        ("<thi", PERHAPS, ("", "<thi")),
        (" ", PERHAPS, ("", " ")),
        ("</think> Yes. </think> ", ALREADY, ("", "Yes. </think> ")),
        ("<think>\n\n</think>\n\n", PERHAPS, ("", "")),
        ("Hm. </thin", ALREADY, ("Hm. </thin", "")),
        ("<think>Hm.\n", PERHAPS, ("Hm.", "")),
        ("<", ALREADY, ("<", "")),
    ],
)
def test_tags_and_blanks_around_them_belong_to_neither(text: str, has_begun: bool, expected: tuple[str, str]) -> None:
    assert taken_apart([text], has_begun=has_begun) == expected
    assert taken_apart(list(text), has_begun=has_begun) == expected


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think>", " ", "\n", "a", "<think", "</thin"]), max_size=12
)


@given(PIECES, st.booleans())
def test_it_does_not_matter_where_a_text_is_cut(pieces: list[str], has_begun: bool) -> None:
    whole = taken_apart(["".join(pieces)], has_begun=has_begun)
    assert taken_apart(pieces, has_begun=has_begun) == whole
    assert taken_apart(list("".join(pieces)), has_begun=has_begun) == whole


def test_reasoning_comes_as_it_is_certain() -> None:
    scanner = ReasoningScanner(FORMAT, has_begun=True)
    pushed = [scanner.push(piece) for piece in ("\nHm", ". ", "Or", "</t", "able>", "</think>", "\n", "Yes")]
    assert pushed == [
        *(("Hm", ""), (".", ""), (" Or", ""), ("", ""), ("</table>", "")),
        *(("", ""), ("", ""), ("", "Yes")),
    ]


def test_reasoning_does_not_begin_on_both_sides_of_a_hidden_token() -> None:
    scanner = ReasoningScanner(FORMAT, has_begun=False)
    assert scanner.push(" <thi") == ("", "")
    assert scanner.interrupt() == " <thi"
    assert scanner.push("nk>Hm.</think>") == ("", "nk>Hm.</think>")


def test_it_is_within_from_the_first_tag_to_the_second() -> None:
    scanner, within = ReasoningScanner(FORMAT, has_begun=False), []
    for piece in ("<", "think>", "Hm", "</think", ">", "\n", "Yes"):
        scanner.push(piece)
        within.append(scanner.is_within)
    assert within == [False, True, True, True, False, False, False]


def test_who_does_not_want_it_is_told_nothing_of_it() -> None:
    scanner = ReasoningScanner(FORMAT, has_begun=True, is_told=False)
    assert [scanner.push("Hm."), scanner.push("</think>Yes."), scanner.flush()] == [("", ""), ("", "Yes."), ("", "")]
