"""How long a stage or a draft takes for a step, by rows, against the time to read its weights and KV once.

    python -m benchmarks.gpu --preset llama-3.1-70b-6 --context 2048,8192 --curve stage.json

Weights and KV are random, made on the device. The ways to run the same layers are timed side by side: `eager`, layer by
layer; `static`, in programs of fixed shape without the attention kernel; `kernel`, with it; `fused`, with it, and what
lies between matrix products compiled; `invariant`, as stages run on a CPU, where no row changes another. On CUDA
devices programs are recorded as graphs; elsewhere the kernel needs TRITON_INTERPRET=1. The bound is of the bandwidth of
a copy, measured in the same run. With `--weights fp8-block` layers have 8-bit weights, with
`--weights int4` 4-bit ones, of which it counts the bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.random_spans import PRESETS, Weights, random_span, weight_bytes
from benchmarks.step_time import DEFAULT, VARIANTS, StepTime, Variant, copy_bandwidth, step_times
from pipedec.errors import PipeDecError
from pipedec.model.devices import check_dtype, choose_device
from pipedec.model.execution import BUCKETS

PLAIN_WIDTH = 160  # of a table that goes to a file
DTYPES = ("bfloat16", "float16", "float32")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="llama-3.1-70b-6", help="the span (default llama-3.1-70b-6)")
    add("--context", type=_numbers, default=(2048, 8192), help="committed tokens (default 2048,8192)")
    add("--rows", type=_numbers, default=BUCKETS, help="of a step (default 1,2,4,8,16,32,64)")
    add("--variants", type=_variants, help="default: those that run on the device")
    add("--dtype", choices=DTYPES, default="bfloat16")
    add(
        "--weights",
        choices=get_args(Weights),
        default="plain",
        help="of layers: plain (the default), or in 8 or 4 bits",
    )
    add("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    add("--repeats", type=int, default=50, help="steps per figure (default 50)")
    add("--json", type=Path, metavar="FILE", help="where all figures go")
    add("--curve", type=Path, metavar="FILE", help="where {rows: ms} of the last variant at the first context goes")
    add("--plot", type=Path, metavar="FILE.png", help="a picture of it all (needs matplotlib)")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1 on, with commas between them")
    return numbers


def _variants(text: str) -> tuple[Variant, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: choose from {', '.join(VARIANTS)}")
    return tuple(variant for variant in VARIANTS if variant in names)


def run(options: argparse.Namespace, console: Console) -> list[StepTime]:
    """Measure what the options ask for, printing a table for each context."""
    device, dtype = choose_device(options.device), getattr(torch, options.dtype)
    check_dtype(device, dtype, "--dtype")
    bandwidth = copy_bandwidth(device)
    what = f"{options.preset}, {options.dtype}, {options.weights} weights"
    console.print(f"{what}, on {_name(device)}: copies at {bandwidth / 1e9:.0f} GB/s")
    times: list[StepTime] = []
    for context in options.context:
        # Anew: some ways to run it lay its weights out anew.
        span = random_span(PRESETS[options.preset], dtype, device, options.weights)
        console.print(f"{weight_bytes(span) / 1e9:.3f} GB of weights")
        found = [
            time
            for variant in options.variants or DEFAULT[device.type]
            for time in step_times(span, variant, context, options.rows, bandwidth, options.repeats)
        ]
        console.print(table(context, found))
        times += found
        del span
    return times


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def table(context: int, times: Sequence[StepTime]) -> Table:
    """Rows against variants: milliseconds queued, how many times the bound that is, and milliseconds waited."""
    variants = tuple(dict.fromkeys(time.variant for time in times))
    table = Table(title=f"context {context}", title_justify="left", title_style="bold")
    for heading in ("rows", "bound ms", *(f"{v} {what}" for v in variants for what in ("ms", "/ bound", "waited ms"))):
        table.add_column(heading, justify="right")
    for rows in dict.fromkeys(time.rows for time in times):
        found = {time.variant: time for time in times if time.rows == rows}
        cells = [str(rows), f"{found[variants[0]].bound:.3f}"]
        for variant in variants:
            time = found[variant]
            cells += [f"{time.queued:.3f}", f"{time.queued / time.bound:.2f}", f"{time.waited:.3f}"]
        table.add_row(*cells)
    return table


def curve(times: Sequence[StepTime]) -> dict[str, float]:
    """Milliseconds by rows, as `benchmarks.speedup --rows-curve` takes them: what a stage waits for."""
    last, first = times[-1].variant, times[0].context
    return {str(time.rows): round(time.waited, 4) for time in times if (time.variant, time.context) == (last, first)}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = Console()
    try:
        times = run(options, console if console.is_terminal else Console(width=PLAIN_WIDTH))
    except PipeDecError as error:
        raise SystemExit(f"error: {error}") from error
    if options.json:
        options.json.write_text(json.dumps([asdict(time) for time in times], indent=1))
    if options.curve:
        options.curve.write_text(json.dumps(curve(times)))
    if options.plot:
        from benchmarks.pictures import plot_step_times

        plot_step_times(times, options.preset, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
