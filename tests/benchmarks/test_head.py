"""The benchmark of the head's own time counts what it says it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.drafts import DraftSource
from benchmarks.head import measure
from benchmarks.measure import Device
from benchmarks.recording import Transcript
from pipedec.policy import PolicyName
from tests.benchmarks.conftest import VOCABULARY


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("policy", ["none", "adaptive"])
def test_every_call_is_counted(
    model: Path, transcripts: list[Transcript], policy: PolicyName, concurrency: int
) -> None:
    draft = DraftSource("emulated:0.7", model).set_for(transcripts)
    result = measure(transcripts, draft, 3, policy, concurrency, Device(), VOCABULARY)
    drafts = policy != "none"
    assert {call for call, spent in result.milliseconds.items() if spent} >= {"verdicts", "compose"}
    assert bool(result.milliseconds["answers"]) == bool(result.draft_gap) == drafts
    assert result.total == pytest.approx(sum(result.milliseconds.values()))
    assert (result.rows > concurrency) == drafts
