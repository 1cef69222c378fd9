"""What a check says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipedec.errors import ManifestError

Level = Literal["ok", "skip", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `skip`: could not be checked from here, or does not apply; `remedy` is what to do."""

    level: Level
    check: str
    message: str
    remedy: str = ""

    @classmethod
    def of(cls, error: ManifestError, check: str) -> Finding:
        """A failed check out of an error that names field and remedy."""
        return cls("fail", check, f"{error.field} {error.problem}", error.remedy)


def exit_status(findings: Iterable[Finding]) -> int:
    """0: nothing to do, 1: something to look at, 2: something does not work."""
    levels = {finding.level for finding in findings}
    return 2 if "fail" in levels else 1 if "warn" in levels else 0
