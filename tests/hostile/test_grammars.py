"""Grammars that break the library cost their author an answer, and nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from draft_service import grammar_trial
from draft_service.grammar_trial import TOO_COMPLEX, GrammarTrial
from pipedec.model.grammar import choice_grammar, json_grammar, regex_grammar
from tests.api.scripted import byte_tokenizer


@pytest.fixture
def trial() -> Iterator[GrammarTrial]:
    with GrammarTrial(byte_tokenizer().backend, 258) as trial:
        yield trial


@pytest.fixture
def process(trial: GrammarTrial) -> psutil.Process:
    """That of the trial, which has tried a grammar."""
    before = psutil.Process().children()
    assert trial.refusal(choice_grammar(["a"])) == ""
    (begun,) = [each for each in psutil.Process().children() if each not in before]
    assert grammar_trial.__name__ in begun.cmdline()
    return begun


def chain(length: int) -> str:
    """A schema of so many references, each to the next."""
    definitions = {str(number): {"$ref": f"#/$defs/{number + 1}"} for number in range(length)}
    return json_grammar({"$defs": {**definitions, str(length): {"type": "string"}}, "$ref": "#/$defs/0"})


@pytest.mark.parametrize(
    "grammar",
    [chain(4000), regex_grammar("a?" * 50_000), regex_grammar("((a{1000}){1000}){1000}")],
    ids=["overflows the stack", "takes memory", "takes time"],
)
def test_too_much_is_refused_and_the_next_is_tried(trial: GrammarTrial, grammar: str) -> None:
    assert trial.refusal(choice_grammar(["a"])) == ""
    assert trial.refusal(grammar) == TOO_COMPLEX
    assert trial.refusal(regex_grammar("(")).startswith("at 1(8): invalid regex")
    assert trial.refusal(chain(200)) == ""


def test_it_is_not_waited_for_ever(
    trial: GrammarTrial, process: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is held, as by a grammar without end."""
    process.suspend()
    monkeypatch.setattr(grammar_trial, "PATIENCE_SECONDS", 0.05)
    assert trial.refusal(choice_grammar(["b"])) == TOO_COMPLEX
    monkeypatch.undo()
    assert trial.refusal(choice_grammar(["c"])) == ""
    assert not process.is_running()


def test_a_process_that_was_killed_is_replaced(trial: GrammarTrial, process: psutil.Process) -> None:
    process.kill()
    process.wait()
    assert trial.refusal(choice_grammar(["b"])) == ""


def test_what_is_known_is_not_tried_again(trial: GrammarTrial, process: psutil.Process) -> None:
    process.suspend()
    assert trial.refusal(choice_grammar(["a"])) == ""


def test_it_does_not_outlive_its_owner() -> None:
    before = psutil.Process().children()
    with GrammarTrial(byte_tokenizer().backend, 258) as trial:
        assert trial.refusal(choice_grammar(["a"])) == ""
        assert len(psutil.Process().children()) == len(before) + 1
    assert psutil.Process().children() == before
