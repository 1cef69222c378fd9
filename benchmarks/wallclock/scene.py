"""What the processes of a run are told, and the device that each of them emulates."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.measure import Device
from benchmarks.recording import Logits, Transcript, load
from draft_service.loop import WARM_UP_PROMPT

VARIABLE = "PIPEDEC_BENCHMARK_SCENE"


@dataclass(frozen=True, slots=True)
class Scene:
    """The recorded prompts in use, cut to `max_tokens`; the draft's noise; the device; whether stages compute."""

    record: Path
    prompts: tuple[int, ...]
    vocab_size: int
    max_tokens: int
    noise: float
    children: int
    device: Device
    compute: bool

    def transcripts(self) -> list[Transcript]:
        recorded = load(self.record)
        assert recorded is not None, "the record was written before"
        return [cut(recorded[index], self.max_tokens) for index in self.prompts]

    def served(self) -> list[Transcript]:
        """The transcripts, and one for the request that the head proves its pipeline with."""
        anything = Logits(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32))
        return [*self.transcripts(), Transcript("warm-up", "", WARM_UP_PROMPT, (0,), anything, anything)]

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), default=str))

    @staticmethod
    def from_environment() -> Scene:
        """The scene of this process."""
        said = json.loads(Path(os.environ[VARIABLE]).read_text())
        device = said.pop("device")
        curve = tuple((int(rows), float(ms)) for rows, ms in device.pop("curve"))
        record, prompts = Path(said.pop("record")), tuple(said.pop("prompts"))
        return Scene(record, prompts, device=Device(curve, **device), **said)


def cut(transcript: Transcript, tokens: int) -> Transcript:
    """The transcript of an answer that was ended after so many tokens."""
    on, off = (
        replace(logits, tokens=logits.tokens[:tokens], values=logits.values[:tokens])
        for logits in (transcript.on, transcript.off)
    )
    return replace(transcript, answer=transcript.answer[:tokens], on=on, off=off)


def hold(start: float, seconds: float, slices: int = 1, go_on: Callable[[float], bool] = lambda done: True) -> bool:
    """Wait until `seconds` after `start` (`time.monotonic`), and ask now and then, with the share of the time that
    has passed, whether to go on. Returns whether the whole time was waited."""
    while (left := start + seconds - time.monotonic()) > 0:
        if not go_on(1 - left / seconds):
            return False
        time.sleep(min(left, seconds / slices))
    return True


def prompts_of_each_kind(kinds: Sequence[str], number: int) -> tuple[int, ...]:
    """Indices of so many prompts, of as many kinds as there are."""
    by_kind = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)}
    turns = [indices[turn] for turn in range(len(kinds)) for indices in by_kind.values() if turn < len(indices)]
    return tuple(sorted(turns[:number]))
