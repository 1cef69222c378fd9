"""What a target says to each prompt, computed once: its greedy tokens, and what a draft makes of them.

A greedy target is a function of its prefix, so its answer need not be computed again for every policy and number of
stages that are compared. For each decided token are kept: the likeliest `TOP` logits on the answer's own path (*on*),
and those after one other token, drawn from the same model's distribution in place of the answer's (*off*). They are
the target's, for emulated drafts, or a real draft's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.simulation import Simulation
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.errors import PipeDecError
from pipedec.model.executor import SpanExecutor
from pipedec.model.loader import SpanModel
from pipedec.model.shape import model_shape
from pipedec.policy import make_policy
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import Batch, Open, Prefill, Row, Rows
from stage_service.worker import StageWorker

TOP = 256
TOGETHER = 24  # prompts that are answered at once
SLOTS = 16384

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompts file; of its fields only `prompt` must be there."""

    prompt: str
    kind: str
    split: str


@dataclass(frozen=True, slots=True)
class Logits:
    """The likeliest logits of some positions, in falling order; both of shape [positions, top]."""

    tokens: Ints
    values: Floats


@dataclass(frozen=True, slots=True)
class Transcript:
    """One prompt and the target's answer to it. `on` and `off` have one row for each token of the answer."""

    kind: str
    split: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    on: Logits
    off: Logits

    def next_token(self, position: int) -> int:
        """What the target decides after the token at `position`; any token beyond the end of the answer."""
        index = position + 1 - len(self.prompt)
        return self.answer[index] if index < len(self.answer) else 0


def load_prompts(source: str | Path) -> list[Prompt]:
    """The prompts of a .jsonl file, or with "all" those of `benchmarks/prompts/`. Raises `PipeDecError`."""
    folder = Path(__file__).parent / "prompts"
    files = sorted(folder.glob("*.jsonl")) if source == "all" else [Path(source)]
    try:
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]
        return [Prompt(str(x["prompt"]), str(x.get("kind", "any")), str(x.get("split", "held-out"))) for x in lines]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise PipeDecError(f'--prompts {source}: {error!r}. Give a file with a {{"prompt": "..."}} a line') from error


class Recorder:
    """A model in this process that answers prompts, and says what it thinks. `layers`: its first ones alone; `ends`: of
    which model the embedding and head are that it lacks itself."""

    def __init__(
        self, path: Path, end_tokens: Iterable[int] = (), *, layers: int | None = None, ends: Path | None = None
    ) -> None:
        span = (0, layers or model_shape(path).num_layers)
        model = SpanModel.load(path, span, dtype=torch.float32, first=True, last=True, ends=ends)
        self._executor = SpanExecutor(model, SLOTS)
        self._end_tokens = frozenset(end_tokens)

    def record(
        self,
        prompts: Sequence[tuple[Prompt, tuple[int, ...]]],
        max_tokens: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Transcript]:
        """Transcripts of prompts given with their tokens; `progress` is told how many are done."""
        transcripts = []
        for start in range(0, len(prompts), TOGETHER):
            group = prompts[start : start + TOGETHER]
            for (prompt, tokens), answer in zip(group, self._answers([t for _, t in group], max_tokens), strict=True):
                on, off = self.logits(tokens, answer)
                transcripts.append(Transcript(prompt.kind, prompt.split, tokens, tuple(answer), on, off))
                progress(len(transcripts))
        return transcripts

    def _answers(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
        scheduler = Scheduler(Limits(stages=1, max_sequences=len(prompts)), make_policy("none"))
        simulation = Simulation(scheduler, [StageWorker(self._executor, is_last=True)], None, SLOTS)
        load = {i: GenerationRequest(p, max_tokens, end_tokens=self._end_tokens) for i, p in enumerate(prompts)}
        generated = simulation.run(load)
        return [generated[index].tokens for index in load]

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[Logits, Logits]:
        """On and off an answer's path: one batch for the whole answer; a second one for a token aside of each."""
        self._executor.reset()
        certain = len(prompt) - 1
        ops = (Open(0, SamplingParams(), len(prompt)), Prefill(0, 0, tuple(prompt[:-1]), tuple(range(certain))))
        path = [prompt[-1], *answer[:-1]]
        slots = range(certain, certain + len(path))
        rows = [Row(0, i, i - 1, t, slots[i], slots[i], tuple(reversed(slots[:i]))) for i, t in enumerate(path)]
        on = self._run(Batch(0, 0, ops, Rows.of(rows)))
        aside = _draw_aside(on, answer)
        first = certain + len(path)
        rows = [
            Row(0, len(path) + i, i, t, slots[i] + 1, first + i, tuple(reversed(slots[: i + 1])))
            for i, t in enumerate(aside)
        ]
        return on, self._run(Batch(0, 1, (), Rows.of(rows)))

    def _run(self, batch: Batch) -> Logits:
        hidden = self._executor.execute(batch, None)
        assert hidden is not None
        best = self._executor.head(hidden[batch.num_prefill :]).topk(
            TOP if self._vocabulary > TOP else self._vocabulary
        )
        return Logits(best.indices.to(torch.int32).numpy(), best.values.numpy())

    @property
    def _vocabulary(self) -> int:
        return self._executor.model.vocab_size


def _draw_aside(on: Logits, answer: Sequence[int]) -> list[int]:
    """For each position a token other than the answer's, drawn from the model's distribution (seeded)."""
    noise = np.random.default_rng(0).gumbel(size=on.values.shape)
    drawn = np.where(on.tokens == np.array(answer)[:, None], -np.inf, on.values + noise)
    return [int(tokens[best]) for tokens, best in zip(on.tokens, drawn.argmax(-1), strict=True)]


def save(file: Path, transcripts: Sequence[Transcript], source: dict[str, Any]) -> None:
    """Keep transcripts in one file, with a description of what they are of."""
    arrays: dict[str, Any] = {}
    for index, transcript in enumerate(transcripts):
        for name, logits in (("on", transcript.on), ("off", transcript.off)):
            arrays[f"{name}_tokens_{index}"] = logits.tokens
            arrays[f"{name}_values_{index}"] = logits.values.astype(np.float16)
    listed = [{key: value for key, value in asdict(t).items() if key not in ("on", "off")} for t in transcripts]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    arrays["about"] = json.dumps({"source": source, "transcripts": listed})
    np.savez_compressed(partial, **arrays)
    partial.replace(file)


def load(file: Path, source: dict[str, Any] | None = None) -> list[Transcript] | None:
    """Transcripts that `save` kept; None if there are none, or of another source than the one given."""
    if not file.exists():
        return None
    with np.load(file) as arrays:
        about = json.loads(str(arrays["about"]))
        if source is not None and about["source"] != source:
            return None
        return [
            Transcript(
                listed["kind"],
                listed["split"],
                tuple(listed["prompt"]),
                tuple(listed["answer"]),
                *(
                    Logits(arrays[f"{name}_tokens_{index}"], arrays[f"{name}_values_{index}"].astype(np.float32))
                    for name in ("on", "off")
                ),
            )
            for index, listed in enumerate(about["transcripts"])
        ]
