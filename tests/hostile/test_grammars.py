"""Grammars that break the library cost their author an answer, and nobody else anything."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from draft_service import grammar_trial
from draft_service.grammar_trial import MOST_WAITING, TOO_COMPLEX, GrammarTrial, Lengths, Outcome, Source
from pipedec.errors import UnavailableError
from pipedec.model.grammar import Grammars, choice_grammar, json_grammar, regex_grammar
from tests.api.scripted import byte_tokenizer
from tests.model.test_grammar import backend


@pytest.fixture
def trial() -> Iterator[GrammarTrial]:
    with GrammarTrial(byte_tokenizer().backend, 258) as trial:
        yield trial


@pytest.fixture
def process(trial: GrammarTrial) -> psutil.Process:
    """That of the trial, which has tried a grammar."""
    before = psutil.Process().children()
    assert refusal(trial, choice_grammar(["a"])) == ""
    (begun,) = [each for each in psutil.Process().children() if each not in before]
    assert grammar_trial.__name__ in begun.cmdline()
    return begun


def refusal(trial: GrammarTrial, text: str) -> str:
    return asyncio.run(trial.outcome(Source(text))).refusal


def chain(length: int) -> str:
    """A schema of so many references, each to the next."""
    definitions = {str(number): {"$ref": f"#/$defs/{number + 1}"} for number in range(length)}
    return json_grammar({"$defs": {**definitions, str(length): {"type": "string"}}, "$ref": "#/$defs/0"})


HOSTILE = {
    "overflows the stack": Source(chain(1500)),
    "takes memory": Source(regex_grammar("a?" * 16_000)),
    "takes time": Source(regex_grammar("((a{1000}){1000}){1000}")),
    "takes time to convert": Source("\n" * 40_000, "lark or gbnf"),
    "takes memory for numbers": Source(json_grammar({"type": "integer", "multipleOf": 999_983})),
    "grows by converting": Source("root ::= " + " | ".join('"a"' for _ in range(12_000)), "lark or gbnf"),
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_too_much_is_refused_and_the_next_is_tried(trial: GrammarTrial, source: Source) -> None:
    assert refusal(trial, choice_grammar(["a"])) == ""
    assert asyncio.run(trial.outcome(source)).refusal
    assert refusal(trial, regex_grammar("(")).startswith("at 1(8): invalid regex")
    assert refusal(trial, chain(200)) == ""


def test_a_grammar_whose_first_token_is_cheap_and_the_next_is_not() -> None:
    """Every way to read eighty signs at once is kept."""
    text = 'start: s\ns: s s s | s s | "#" | "#" "#" | "#" "#" "#"'
    with GrammarTrial(backend("#" * 80), 310) as trial:
        outcome = asyncio.run(trial.outcome(Source(text, "lark or gbnf")))
    assert outcome.refusal


def test_too_many_at_once_are_asked_to_come_again(trial: GrammarTrial, process: psutil.Process) -> None:
    """While one takes its time; what is known is answered beside it."""

    async def ask() -> list[Outcome | BaseException]:
        asked = [trial.outcome(Source(regex_grammar(f"a{number}"))) for number in range(MOST_WAITING + 1)]
        waiting = asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(0)
        assert (await trial.outcome(Source(choice_grammar(["a"])))).refusal == ""
        process.resume()
        return await waiting

    process.suspend()
    *answered, refused = asyncio.run(ask())
    assert all(isinstance(each, Outcome) and not each.refusal for each in answered)
    assert isinstance(refused, UnavailableError)
    assert refused.status == 429


def test_a_form_that_many_ask_for_at_once_is_tried_once(trial: GrammarTrial, process: psutil.Process) -> None:
    async def ask() -> list[Outcome]:
        waiting = [asyncio.ensure_future(trial.outcome(Source(regex_grammar("abc+")))) for _ in range(100)]
        await asyncio.sleep(0)
        waiting.pop(0).cancel()
        process.resume()
        return await asyncio.gather(*waiting)

    process.suspend()
    assert [outcome.refusal for outcome in asyncio.run(ask())] == [""] * 99


def test_a_trial_that_hangs_is_ended(trial: GrammarTrial, process: psutil.Process) -> None:
    """Its limit is of a processor's time, which one that is held does not take."""
    grammar = regex_grammar("((a{1000}){1000}){1000}")
    asked = threading.Thread(target=lambda: outcomes.append(refusal(trial, grammar)))
    outcomes: list[str] = []
    asked.start()
    while not (children := process.children()):
        assert asked.is_alive()
    children[0].suspend()
    asked.join()
    assert outcomes == [TOO_COMPLEX]
    assert refusal(trial, choice_grammar(["b"])) == ""
    assert process.is_running()
    assert not process.children()


def test_a_process_that_cannot_start_blames_no_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with GrammarTrial(byte_tokenizer().backend, 258) as trial:
        with pytest.raises(UnavailableError, match="did not start"):
            refusal(trial, choice_grammar(["a"]))
        monkeypatch.setattr(sys, "executable", "/nowhere")
        with pytest.raises(UnavailableError, match="cannot be started"):
            refusal(trial, choice_grammar(["a"]))
        monkeypatch.undo()
        assert refusal(trial, choice_grammar(["a"])) == ""


def test_grammars_leave_nothing_behind(trial: GrammarTrial, process: psutil.Process) -> None:
    """Each is tried in the same memory, though all of them would not fit."""
    for number in range(40):
        numbers = {"type": "integer", "multipleOf": 1_001 + 2 * number}
        assert refusal(trial, json_grammar(numbers)) == ""
    assert process.is_running()
    assert not process.children()


@pytest.mark.parametrize("slow", [1, 2])
def test_what_took_too_long_is_tried_once_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slow: int) -> None:
    """The machine may have been busy."""
    tries = tmp_path / "tries"
    tried = grammar_trial._tried

    def slow_at_first(grammars: Grammars, lengths: Lengths, source: Source) -> Outcome:
        with tries.open("a") as file:
            file.write(".")
        outcome = tried(grammars, lengths, source)
        return Outcome("", TOO_COMPLEX) if len(tries.read_text()) <= slow else outcome

    monkeypatch.setattr(grammar_trial, "_tried", slow_at_first)
    outcomes = grammar_trial._outcomes(
        iter([json.dumps((byte_tokenizer().backend.to_str(), 258)), json.dumps(Source(choice_grammar(["a"])))])
    )
    assert next(outcomes) == ()
    assert next(outcomes)[1] == ("" if slow == 1 else TOO_COMPLEX)
    assert tries.read_text() == ".."


def test_it_is_not_waited_for_ever(
    trial: GrammarTrial, process: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is held, of which no grammar is guilty."""
    process.suspend()
    monkeypatch.setattr(grammar_trial, "SILENCE_SECONDS", 0.05)
    with pytest.raises(UnavailableError, match="died"):
        refusal(trial, choice_grammar(["b"]))
    monkeypatch.undo()
    assert refusal(trial, choice_grammar(["b"])) == ""
    assert refusal(trial, choice_grammar(["c"])) == ""
    assert not process.is_running()


def test_a_process_that_was_killed_is_replaced(trial: GrammarTrial, process: psutil.Process) -> None:
    process.kill()
    process.wait()
    assert refusal(trial, choice_grammar(["b"])) == ""


def test_what_is_known_is_not_tried_again(trial: GrammarTrial, process: psutil.Process) -> None:
    process.suspend()
    assert refusal(trial, choice_grammar(["a"])) == ""


def test_it_does_not_outlive_its_owner() -> None:
    before = psutil.Process().children()
    with GrammarTrial(byte_tokenizer().backend, 258) as trial:
        assert refusal(trial, choice_grammar(["a"])) == ""
        assert len(psutil.Process().children()) == len(before) + 1
    assert psutil.Process().children() == before
