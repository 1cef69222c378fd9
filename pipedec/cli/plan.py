"""`pipedec plan`: how many stages of which GPU, how fast that would be, and a manifest to begin with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import quote

import typer
from rich.table import Table

from pipedec.cli.terminal import Fetching, explained, notes
from pipedec.config import model_cache
from pipedec.errors import PipeDecError
from pipedec.sizing import GPUS, POLICIES, Gpu, ModelSize, Option, Wish, find_gpu, least_stages, option
from pipedec.sizing import recommended_stages as recommended
from pipedec.sizing.gpus import GIB
from pipedec.sizing.speed import check_agreement
from pipedec.sizing.suggestion import suggest_manifest
from pipedec.spec import Dtype
from pipedec.spec.deployment import CONTEXT_CAP
from pipedec.words import counted

COLUMNS = 130  # of a report that goes to a file


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


@explained
def plan(
    model: Annotated[str, typer.Option(help="The target: a model's URI, its folder, or a config.json.")],
    gpu: Annotated[str | None, typer.Option(help=f"GPU of every stage: {', '.join(g.name for g in GPUS)}.")] = None,
    draft: Annotated[str | None, typer.Option(help="The draft, likewise; it runs on a GPU of its own.")] = None,
    stages: Annotated[int | None, typer.Option(help="Number of stages; else the recommended one.", min=1)] = None,
    context: Annotated[
        int | None, typer.Option(help=f"Most tokens of a request; else the model's limit, at most {CONTEXT_CAP}.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Requests decoded at the same time.", min=1, max=256)] = 4,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32; else what the GPU does best.")
    ] = None,
    agreement: Annotated[
        float, typer.Option(help="Share of positions at which the draft's first choice is the target's.")
    ] = 0.76,
    link_ms: Annotated[float, typer.Option(help="Time of a message between stages.", min=0.0, callback=_finite)] = 0.5,
    gpu_memory: Annotated[
        float | None, typer.Option(help="GiB, of a GPU that is not in the table.", callback=_finite)
    ] = None,
    gpu_bandwidth: Annotated[float | None, typer.Option(help="Its GB/s.", callback=_finite)] = None,
    gpu_tflops: Annotated[float | None, typer.Option(help="Its dense half-precision TFLOPS.", callback=_finite)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimates as JSON instead of a manifest.")] = False,
) -> None:
    """Estimate how many stages a model needs and how fast they decode. Of models, only config.json is fetched.

    The report goes to stderr and a manifest to stdout:

        pipedec plan --model hf://org/large --draft hf://org/small --gpu L4 > pipeline.yaml

    A step takes max(bytes read / (0.8 x bandwidth), FLOPs / (0.5 x peak), 0.15 ms a layer) and a message. Plain
    pipeline parallelism decodes 1 / (stages x step) tokens per second; how much faster a policy is was measured on a
    simulated clock. Everything printed is an estimate.
    """
    check_agreement(agreement)
    device = _device(gpu, gpu_memory, gpu_bandwidth, gpu_tflops)
    target_uri, target = _model(model, "--model")
    draft_uri, small = (None, None) if draft is None else _model(draft, "--draft")
    _check(target, small, context)
    length = context or min(target.context_limit, CONTEXT_CAP)
    wish = Wish(target, small, device, _dtype(dtype, device), length, sequences, agreement, link_ms / 1000)
    least, best = least_stages(wish), recommended(wish)
    chosen = option(wish, stages or best)
    shown = sorted({least, best, chosen.stages, *(n for n in (best * 3 // 2, best * 2) if n <= target.num_layers)})
    options = [option(wish, number) for number in shown if number <= min(target.num_layers, 64)]
    if as_json:
        print(json.dumps(_as_json(wish, least, best, options)))
        return
    _report(wish, least, best, options)
    if chosen.stages < least:
        raise PipeDecError(f"--stages {chosen.stages}: does not fit; {least} is the least")
    print(suggest_manifest(wish, chosen, target_uri, draft_uri), end="")


def _check(target: ModelSize, draft: ModelSize | None, context: int | None) -> None:
    if draft is not None and draft.vocab_size != target.vocab_size:
        raise PipeDecError(
            f"--draft: has a vocabulary of {draft.vocab_size} tokens, the target has {target.vocab_size}; choose one "
            "of the target's own family, since the two must share a tokenizer"
        )
    if context is not None and not 16 <= context <= target.context_limit:
        raise PipeDecError(f"--context {context}: write 16 to {target.context_limit}, the model's own limit")


def _device(name: str | None, memory: float | None, bandwidth: float | None, tflops: float | None) -> Gpu:
    given = (memory, bandwidth, tflops)
    if any(given) and not all(value is not None and value > 0 for value in given):
        raise PipeDecError("--gpu-memory, --gpu-bandwidth and --gpu-tflops are needed together, each above 0")
    if memory and bandwidth and tflops:
        return Gpu(name or "this GPU", memory, bandwidth, tflops, "the command line")
    if name is None:
        raise PipeDecError("--gpu is missing; name one, or give --gpu-memory, --gpu-bandwidth and --gpu-tflops")
    return find_gpu(name, ". For another give --gpu-memory, --gpu-bandwidth and --gpu-tflops")


def _model(text: str, flag: str) -> tuple[str, ModelSize]:
    """URI and sizes of a model that is given as URI, folder or config.json."""
    if "://" in text:
        from pipedec.models import resolve_config

        with Fetching() as fetching:
            folder = resolve_config(text, model_cache(), fetching)
        uri = text
    else:
        folder = Path(text).resolve()
        folder = folder.parent if folder.is_file() else folder
        uri = f"file://{quote(str(folder))}"
    file = Path(text) if text.endswith(".json") else folder / "config.json"
    try:
        config = json.loads(file.read_text())
        if not isinstance(config, dict):
            raise ValueError("a JSON object is expected")
    except (OSError, ValueError, RecursionError) as error:
        raise PipeDecError(f"{flag} {text}: {file} cannot be read ({error}); give a URI or a config.json") from error
    try:
        return uri, ModelSize.of(config)
    except PipeDecError as error:
        raise PipeDecError(f"{flag} {text}: {error}") from error


def _dtype(text: str | None, gpu: Gpu) -> Dtype:
    known: tuple[Dtype, ...] = get_args(Dtype)
    if text is None:
        return "bfloat16" if gpu.bfloat16 else "float16"
    for dtype in known:
        if dtype == text:
            if dtype == "bfloat16" and not gpu.bfloat16:
                raise PipeDecError(f"--dtype bfloat16: {gpu.name} has none; write float16 or float32")
            return dtype
    raise PipeDecError(f"--dtype {text}: write one of {', '.join(known)}")


def _report(wish: Wish, least: int, best: int, options: list[Option]) -> None:
    model, draft = wish.model, wish.draft
    kept = f", {' and '.join(f'{bits}-bit' for bits in model.bits)} weights kept so" if model.bits else ""
    weights = f"as {wish.dtype}{kept}"
    notes.print(
        f"ESTIMATES for {model.architecture}, {model.parameters / 1e9:.1f}B parameters in "
        f"{counted(model.num_layers, 'layer')}, {weights}, {counted(wish.sequences, 'request')} of up to "
        f"{wish.context} tokens, on {wish.gpu.name} ({wish.gpu.memory:g} GiB, {wish.gpu.bandwidth:g} GB/s)"
    )
    table = Table("stages", "fullest stage", "step", "draft step", *POLICIES, title_justify="left")
    for each in options:
        need = each.needs[each.fullest]
        memory = f"{need.total / GIB:.1f} of {wish.gpu.usable_bytes / GIB:.1f} GiB"
        mark = "" if each.stages >= least else " (does not fit)"
        drafting = "" if each.draft_seconds is None else f"{1000 * each.draft_seconds:.1f} ms"
        rates = [f"{rate:.1f}" if rate else "-" for rate in (each.tokens_per_second[policy] for policy in POLICIES)]
        table.add_row(f"{each.stages}{mark}", memory, f"{1000 * each.step_seconds:.1f} ms", drafting, *rates)
    if not notes.is_terminal:
        notes.width = COLUMNS
    notes.print(table)
    notes.print(
        f"Tokens per second of one request; the draft's first choice agrees in {wish.agreement:.0%} (an assumption; "
        "--agreement). At least "
        f"{counted(least, 'stage')}; recommended {best}, the fewest with memory to spare"
        + (
            ", and a GPU for the draft."
            if draft
            else ". Without --draft only what a text repeats is predicted, which is not estimated."
        )
    )
    if draft is not None and any(each.tokens_per_second["adaptive"] is None for each in options):
        notes.print("-: the draft would be slower than a stage; choose a smaller one, or fewer stages.")


def _as_json(wish: Wish, least: int, best: int, options: list[Option]) -> dict[str, Any]:
    return {
        "estimate": True,
        "gpu": wish.gpu.name,
        "dtype": wish.dtype,
        "context": wish.context,
        "sequences": wish.sequences,
        "agreement": wish.agreement,
        "least_stages": least,
        "recommended_stages": best,
        "options": [
            {
                "stages": each.stages,
                "stage_bytes": [round(need.total) for need in each.needs],
                "draft_bytes": None if each.draft_need is None else round(each.draft_need.total),
                "step_ms": 1000 * each.step_seconds,
                "draft_ms": None if each.draft_seconds is None else 1000 * each.draft_seconds,
                "tokens_per_second": dict(each.tokens_per_second),
            }
            for each in options
        ],
    }
