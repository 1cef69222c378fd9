"""`python -m pipedec.sizing.reference docs/sizing.md`: writes the tables of that page anew."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipedec.sizing.gpus import GPUS, find_gpu
from pipedec.sizing.model import ModelSize
from pipedec.sizing.option import Wish, least_stages, option, recommended_stages
from pipedec.sizing.speed import POLICIES, measured, speed_up
from pipedec.spec import Dtype

# As their config.json have it.
LLAMA_70B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
LLAMA_1B: dict[str, Any] = LLAMA_70B | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
QUANTISED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "FP8": {"quantization_config": {"quant_method": "fp8"}},
    "4 bits, groups of 128": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
}
EXAMPLES = ("T4", "L4", "A10", "RTX4090", "L40S", "A100-80GB")
_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = tuple[str, ...]


def with_tables(page: str) -> str:
    """The page with each table between its marks."""
    tables = {"examples": _examples, "speed-ups": _speed_ups, "bits": _bits, "gpus": _gpus}
    return _TABLE.sub(lambda match: f"{match[1]}\n{_markdown(tables[match[2]]())}\n{match[3]}", page)


def _examples() -> Iterator[Row]:
    yield ("GPU", "least", "stages", "step", *(f"`{policy}`" for policy in POLICIES))
    for name in EXAMPLES:
        wish = _wish(name, LLAMA_70B)
        best = option(wish, recommended_stages(wish))
        rates = ("-" if rate is None else f"{rate:.1f}" for rate in best.tokens_per_second.values())
        yield (name, str(least_stages(wish)), str(best.stages), f"{1000 * best.step_seconds:.1f} ms", *rates)


def _bits() -> Iterator[Row]:
    yield ("weights, on L4", "least", "stages", *(f"`{policy}`" for policy in POLICIES))
    for name, more in QUANTISED.items():
        wish = _wish("L4", LLAMA_70B | more)
        best = option(wish, recommended_stages(wish))
        rates = ("-" if rate is None else f"{rate:.1f}" for rate in best.tokens_per_second.values())
        yield (name, str(least_stages(wish)), str(best.stages), *rates)


def _wish(gpu_name: str, config: dict[str, Any]) -> Wish:
    gpu = find_gpu(gpu_name)
    dtype: Dtype = "bfloat16" if gpu.bfloat16 else "float16"
    return Wish(ModelSize.of(config), ModelSize.of(LLAMA_1B), gpu, dtype, context=8192, sequences=4)


def _speed_ups() -> Iterator[Row]:
    by_stages = measured()["draft_time"]["0.25"]
    agreements = by_stages["1"]
    yield ("stages", *(f"agreement {agreement}" for agreement in agreements))
    for stages in sorted(map(int, by_stages)):
        yield (str(stages), *(f"{speed_up('adaptive', stages, float(a), 0.25):.1f}" for a in agreements))


def _gpus() -> Iterator[Row]:
    yield ("`--gpu`", "memory", "bandwidth", "TFLOPS", "source")
    for gpu in GPUS:
        source = f"[{gpu.source.rstrip('/').rpartition('/')[2]}]({gpu.source})" if "://" in gpu.source else gpu.source
        yield (gpu.name, f"{gpu.memory:g}", f"{gpu.bandwidth:g}", f"{gpu.tflops:g}", source)


def _markdown(rows: Iterable[Row]) -> str:
    header, *rest = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ("---",) * len(header), *rest))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text()))
