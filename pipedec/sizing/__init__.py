"""How many stages, on which GPU, and how fast: estimates from a model's config.json, before anything is bought. Pure.

    memory of a stage   weights + KV slots x its layers + workspace, of 90 % of the GPU's memory
    KV slots            sequences x context + (stages + 1) x 64, the rows in flight
    T(rows)             max(bytes read / (0.8 x bandwidth), FLOPs / (0.5 x peak), layers x 0.15 ms) + link
    bytes read          weights, and the KV of one request of half the context
    plain pipeline      1 / (stages x T(1))
    with a policy       speed-up(stages, agreement, T of the draft / T(64)) / (stages x T(64))

The speed-ups are those that `python -m benchmarks.sizing` measured on a simulated clock with an emulated draft; they
are package data. 0.8, 0.5 and 0.15 ms (a layer's kernel launches) are assumptions; everything else is arithmetic.
"""

from pipedec.sizing.gpus import GPUS, Gpu, find_gpu
from pipedec.sizing.memory import Need, draft_need, stage_needs
from pipedec.sizing.model import DTYPE_BYTES, ModelSize
from pipedec.sizing.option import Option, Wish, least_stages, option, recommended_stages
from pipedec.sizing.speed import POLICIES, step_seconds
from pipedec.sizing.suggestion import suggest_manifest

__all__ = [
    "DTYPE_BYTES",
    "GPUS",
    "POLICIES",
    "Gpu",
    "ModelSize",
    "Need",
    "Option",
    "Wish",
    "draft_need",
    "find_gpu",
    "least_stages",
    "option",
    "recommended_stages",
    "stage_needs",
    "step_seconds",
    "suggest_manifest",
]
