"""What is a draft worth on this machine, without any emulation? One stage beside transformers, with and without help.

    python -m benchmarks.assisted --draft examples/smollm2/draft --threads 2 --json

SmolLM2 answers prompts of each kind that no draft was trained on: over HTTP from one stage with policy `adaptive`; by
`generate()`; and by `generate()` assisted by the same draft. They take turns, with the same dtype and number of
threads; each ratio is of the sums of seconds per token after the first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import openai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.overhead import URI, resource, time_generate, time_http
from benchmarks.recording import Prompt, load_prompts
from benchmarks.up import running
from examples.smollm2.student import load_student
from pipedec.config import model_cache
from pipedec.models import resolve

NAMES = {"pipedec": "adaptive, over HTTP", "generate": "generate()", "assisted": "generate() with the draft"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.assisted", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draft", type=Path, required=True, metavar="FOLDER", help="a draft that distill.py made")
    parser.add_argument("--prompts", type=int, default=2, help="held-out prompts of each kind (default 2)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens a prompt (default 64)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default 1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    path = resolve(URI, model_cache())
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    draft = load_student(path, options.draft).to(dtype).eval()
    prompts = [p for p in load_prompts("all") if p.split == "held-out"]
    chosen = [p.prompt for kind in sorted({p.kind for p in prompts}) for p in _first(prompts, kind, options.prompts)]
    seconds = dict.fromkeys(NAMES, 0.0)
    manifest = resource(options.dtype, options.threads, "adaptive", options.draft.resolve().as_uri())
    with (
        running(manifest) as up,
        openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", timeout=600) as client,
    ):
        time_http(client, 4)
        time_generate(model, tokenizer, 4, assistant_model=draft)
        for prompt in chosen:
            seconds["pipedec"] += time_http(client, options.max_tokens, prompt)
            seconds["generate"] += time_generate(model, tokenizer, options.max_tokens, prompt)
            seconds["assisted"] += time_generate(model, tokenizer, options.max_tokens, prompt, assistant_model=draft)
    result = {f"{name}_ms_per_token": 1000 * total / len(chosen) for name, total in seconds.items()}
    result |= {f"over_{name}": seconds[name] / seconds["pipedec"] for name in ("generate", "assisted")}
    if options.json:
        print(json.dumps(result))
    else:
        for name, label in NAMES.items():
            print(f"{label:28}{result[f'{name}_ms_per_token']:8.1f} ms a token")
        print(
            "adaptive is {over_generate:.2f}x of generate(), {over_assisted:.2f}x of it with the draft".format(**result)
        )
    return 0


def _first(prompts: Sequence[Prompt], kind: str, count: int) -> list[Prompt]:
    return [p for p in prompts if p.kind == kind][:count]


if __name__ == "__main__":
    sys.exit(main())
