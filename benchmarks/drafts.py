"""Where a benchmark's draft comes from, as `--draft` says it.

Real drafts are replayed as the target is: on every answer's path, and one token off it, a draft is run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.recording import Recorder, Transcript, load, save
from benchmarks.replayed_draft import ReplayedDraft, agreement, noise_level
from draft_service.draft.drafter import Proposer
from pipedec.config import model_cache
from pipedec.errors import PipeDecError
from pipedec.models import resolve


@dataclass(frozen=True, slots=True)
class DraftSource:
    """`emulated:A`, `layers:N`, a folder or URI of a model, or `none`: predictions come from the text alone."""

    text: str
    target: Path
    level: float = 0.0  # of the noise, of an emulated draft
    record: Path | None = None  # of a real draft

    @property
    def emulated(self) -> bool:
        return self.text.startswith("emulated:")

    @property
    def label(self) -> str:
        """For tables and pictures: an emulated draft is always called one."""
        return self.text if not self.emulated else f"EMULATED draft, top-1 agreement {self._number(float)}"

    def _number(self, kind: type[float] | type[int]) -> float:
        value = self.text.partition(":")[2]
        try:
            return kind(value)
        except ValueError as error:
            raise PipeDecError(f"--draft {self.text}: {value!r} is not a number") from error

    def set_for(self, transcripts: Sequence[Transcript], folder: Path | None = None) -> DraftSource:
        """Ready to be built for some of these transcripts: with the noise that gives an emulated draft its agreement,
        or with what a real one makes of them, recorded in `folder`, which must stay while it is used."""
        if self.emulated:
            return replace(self, level=noise_level(transcripts, self._number(float)))
        if self.text == "none":
            return self
        assert folder is not None, "a real draft is recorded"
        recorder = self._recorder()
        own = [replace(t, on=on, off=off) for t in transcripts for on, off in [recorder.logits(t.prompt, t.answer)]]
        save(record := folder / "draft.npz", own, {})
        return replace(self, record=record)

    def _recorder(self) -> Recorder:
        if self.text.startswith("layers:"):
            return Recorder(self.target, layers=int(self._number(int)))
        uri = self.text if "://" in self.text else f"file://{Path(self.text).resolve()}"
        return Recorder(resolve(uri, model_cache()), ends=self.target)

    def agreements(self, transcripts: Sequence[Transcript]) -> dict[int, float] | None:
        """Share of positions at which the target's choice is among the first 1, 4, 8, 16; None without a draft."""
        if self.text == "none":
            return None
        drafted = self._drafted(transcripts)
        return {top: agreement(drafted, self.level, top) for top in (1, 4, 8, 16)}

    def build(self, transcripts: Sequence[Transcript], children: int) -> Proposer | None:
        if self.text == "none":
            return None
        return ReplayedDraft(self._drafted(transcripts), self.level, children)

    def _drafted(self, transcripts: Sequence[Transcript]) -> Sequence[Transcript]:
        """The transcripts with the logits that the draft's proposals come from."""
        if self.record is None:
            return transcripts
        own = _own(self.record)
        return [own[transcript.prompt] for transcript in transcripts]


@cache
def _own(record: Path) -> dict[tuple[int, ...], Transcript]:
    transcripts = load(record)
    assert transcripts is not None, "the record was written before"
    return {transcript.prompt: transcript for transcript in transcripts}
