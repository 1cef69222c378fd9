"""Answers of a given form: what a pipeline says is what the target says when it may only choose what fits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import regex
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from benchmarks.local import build_stages
from benchmarks.simulation import Simulation
from draft_service.generation import GenerationRequest
from draft_service.schedule.guidance import UNGUIDED, Guides
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.errors import RequestError
from pipedec.model.grammar import Grammars, Matcher, context_free_grammar, json_grammar, regex_grammar
from pipedec.policy import PolicyName, make_policy
from pipedec.proposals import Proposals
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import Batch
from tests.exactness.drafts import make_draft
from tests.exactness.pipelines import NUM_SLOTS, POLICIES, SAMPLED, load, run, run_again
from tests.tiny import tiny_model

VOCABULARY, END = 320, 257
MOST = 24
PATTERNS = ("[a-z]{3,5}( [a-z]{2,4}){2}!", "the answer is (yes|no|[0-9]{2,3})", "(ab|ba|[xyz ]+;)*done")
MARKED = "start: /[a-z]{2,4}/ (<[256]> /[a-z]{1,3}/ <[256]>)+"  # with a token that is no text
SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "integer", "minimum": 10, "maximum": 999}, "kind": {"enum": ["left", "right"]}},
    "required": ["id", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "llama", layers=5)


@pytest.fixture(scope="session")
def backend(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


@pytest.fixture(scope="session")
def grammars(backend: Tokenizer) -> Grammars:
    return Grammars(backend, VOCABULARY)


def requests_for(*grammar: str, sampling: SamplingParams | None = None, seed: int = 1) -> dict[int, GenerationRequest]:
    sampling = sampling or SamplingParams()
    formed = {
        key: replace(sampling, grammar=each, end_tokens=(END,), seed=sampling.seed + key)
        for key, each in enumerate(grammar)
    }
    return {
        key: replace(request, max_tokens=MOST, sampling=formed[key], end_tokens=frozenset({END}))
        for key, request in load(len(grammar), seed=seed).items()
    }


def by_hand(model: Path, backend: Tokenizer, prompt: tuple[int, ...], pattern: str) -> list[int]:
    """transformers' logits, and Python's regular expressions to say what fits."""
    target = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    texts = {token: text for token in range(256) if (text := backend.decode([token])).isascii() and text.isprintable()}
    wanted, said, text = regex.compile(pattern), list[int](), ""
    while len(said) < MOST and END not in said:
        fitting = [token for token, piece in texts.items() if wanted.fullmatch(text + piece, partial=True)]
        fitting += [END] if wanted.fullmatch(text) else []
        with torch.inference_mode():
            logits = target(torch.tensor([[*prompt, *said]])).logits[0, -1]
        said.append(max(fitting, key=lambda token: float(logits[token])))
        text += texts.get(said[-1], "")
    return said


@pytest.mark.parametrize("policy", POLICIES)
def test_greedy_equals_the_target_among_what_fits(
    model: Path, backend: Tokenizer, grammars: Grammars, policy: PolicyName
) -> None:
    requests = requests_for(*map(regex_grammar, PATTERNS))
    expected = {key: by_hand(model, backend, requests[key].prompt, PATTERNS[key]) for key in requests}
    for stages, kind in ((1, "noisy"), (3, "right"), (5, "wrong")):
        assert run(model, policy, stages, kind, requests, grammars=grammars) == expected


def test_sampled_answers_depend_neither_on_policies_nor_on_guides(model: Path, grammars: Grammars) -> None:
    """Nor on whether a fault made the last stage hear of half an answer at once."""
    requests = requests_for(*[json_grammar(SCHEMA)] * 3, regex_grammar(PATTERNS[2]), MARKED, sampling=SAMPLED)
    alone = run(model, "none", 1, "", requests, grammars=grammars)
    assert len({tuple(tokens) for tokens in alone.values()}) == 5
    assert 256 in alone[4]
    for policy, stages in zip(POLICIES, (3, 2, 3, 2), strict=True):
        assert run(model, policy, stages, "noisy", requests, grammars=grammars) == alone
    assert run_again(model, requests, steps=100, prefill_chunk=8, grammars=grammars) == alone


def test_an_answer_follows_its_schema(model: Path, backend: Tokenizer, grammars: Grammars) -> None:
    (request,) = requests_for(json_grammar(SCHEMA)).values()
    request = replace(request, max_tokens=400)  # random models love blanks
    (tokens,) = run(model, "adaptive", 3, "noisy", {0: request}, grammars=grammars).values()
    value = json.loads(backend.decode(tokens))
    assert value.keys() == {"id", "kind"}
    assert 10 <= value["id"] < 1000


class Watched:
    """Another draft, and how much of what it proposes cannot come next."""

    def __init__(self, model: Path) -> None:
        self._draft = make_draft("random", model, NUM_SLOTS)
        self.counts: Counter[str] = Counter()

    def reset(self, num_slots: int) -> None:
        self._draft.reset(num_slots)

    def propose(self, batch: Batch, guides: Guides = UNGUIDED) -> Proposals:
        proposals = self._draft.propose(batch, guides)
        for row, children in enumerate(proposals):
            self.counts["rows"] += 1
            self.counts["guided"] += row in guides
            allowed = guides[row].allowed() if row in guides else None
            if allowed is not None and allowed.any():
                self.counts["forbidden"] += sum(not allowed[token] for token, _ in children)
        return proposals


def test_predictions_follow_the_grammar_too(model: Path, grammars: Grammars) -> None:
    """Beside a request that has none. Where there is no choice they are right, whatever the draft model thinks."""
    pattern = "all of this text is given, and nothing"
    requests = requests_for(regex_grammar(pattern), "")
    requests[0] = replace(requests[0], max_tokens=60)
    scheduler = Scheduler(Limits(3), make_policy("adaptive", width=8, children=4), grammars)
    draft = Watched(model)
    stages = build_stages(model, 3, NUM_SLOTS, grammars=grammars)
    generated = Simulation(scheduler, stages, draft, NUM_SLOTS).run(requests)
    assert draft.counts["forbidden"] == 0
    assert draft.counts["rows"] > draft.counts["guided"] > 0
    statistics = generated[0].statistics
    assert statistics is not None
    assert statistics.hits >= len(pattern) - 1
    assert len(generated[0].tokens) == len(pattern) + 1


def test_forced_text_needs_no_draft_model(model: Path, grammars: Grammars) -> None:
    pattern = "all of this text is given, and nothing"
    requests = {0: replace(requests_for(regex_grammar(pattern))[0], max_tokens=60)}
    scheduler = Scheduler(Limits(3), make_policy("adaptive", width=8, children=4), grammars)
    scheduler.lose_draft()
    generated = Simulation(scheduler, build_stages(model, 3, NUM_SLOTS, grammars=grammars), None, NUM_SLOTS).run(
        requests
    )
    statistics = generated[0].statistics
    assert statistics is not None
    assert statistics.hits >= len(pattern) - 1


class Counted(Grammars):
    """How many answers were begun, or begun again."""

    begun = 0

    def matcher(self, grammar: str, end_tokens: Iterable[int]) -> Matcher:
        self.begun += 1
        return super().matcher(grammar, end_tokens)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_grammar_that_grows_too_complex_ends_its_answer_and_no_other(
    model: Path, backend: Tokenizer, grammars: Grammars, policy: PolicyName
) -> None:
    """At once: after these tokens it would again, with predictions or without."""
    ambiguous = context_free_grammar("start: s\ns: " + " | ".join(number * "s " + '"#"' for number in range(10)))
    requests = requests_for(ambiguous, "", sampling=SamplingParams(logit_bias=((END, -100.0),)))
    requests[0] = replace(requests[0], max_tokens=60)
    alone = run(model, "none", 1, "", {1: requests[1]})
    scheduler = Scheduler(Limits(3), make_policy(policy, width=8, children=4), grammars)
    draft = make_draft("noisy", model, NUM_SLOTS) if policy != "none" else None
    counted = Counted(backend, VOCABULARY)
    simulation = Simulation(scheduler, build_stages(model, 3, NUM_SLOTS, grammars=counted), draft, NUM_SLOTS)
    with pytest.raises(RequestError, match=r"cannot be followed any further: Parser Error: .* items") as refused:
        simulation.run(requests)
    assert (refused.value.status, refused.value.code) == (400, "unfinishable")
    generated = simulation.run({})
    assert backend.decode(generated[0].tokens) == 24 * "#"
    assert generated[1].tokens == alone[1]
    assert counted.begun == 1
    assert scheduler.counts.given_up == scheduler.num_slots_used == 0
