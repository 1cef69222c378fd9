"""Where a benchmark's draft comes from, as `--draft` says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.emulated import EmulatedDraft, agreement, noise_level
from benchmarks.local import build_drafter
from benchmarks.recording import Transcript
from draft_service.drafter import Drafter, Proposer
from pipedec.config import model_cache
from pipedec.errors import PipeDecError
from pipedec.models import resolve

DRAFT_SLOTS = 1 << 15


@dataclass(frozen=True, slots=True)
class DraftSource:
    """`emulated:A`, `layers:N`, a folder or URI of a model, or `none`: predictions come from the text alone."""

    text: str
    target: Path
    level: float = 0.0  # of the noise, of an emulated draft

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

    def set_for(self, transcripts: Sequence[Transcript]) -> DraftSource:
        """With the noise that gives an emulated draft its agreement on these transcripts."""
        if not self.emulated:
            return self
        return DraftSource(self.text, self.target, noise_level(transcripts, self._number(float)))

    def agreements(self, transcripts: Sequence[Transcript]) -> dict[int, float] | None:
        """Share of positions at which the target's choice is among the first 1, 4, 8, 16; of emulated drafts."""
        return {top: agreement(transcripts, self.level, top) for top in (1, 4, 8, 16)} if self.emulated else None

    def build(self, transcripts: Sequence[Transcript], children: int) -> Proposer | None:
        if self.text == "none":
            return None
        if self.emulated:
            return EmulatedDraft(transcripts, self.level, children)
        return _build_real(self, children)


@cache
def _build_real(source: DraftSource, children: int) -> Drafter:
    if source.text.startswith("layers:"):
        return build_drafter(source.target, DRAFT_SLOTS, layers=int(source._number(int)), children=children)
    uri = source.text if "://" in source.text else f"file://{Path(source.text).resolve()}"
    return build_drafter(resolve(uri, model_cache()), DRAFT_SLOTS, children=children)
