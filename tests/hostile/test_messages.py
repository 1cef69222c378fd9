"""Every port of every process is sent what it should not be, while clients ask."""

from __future__ import annotations

import asyncio

from benchmarks.hostile.trial import harmless, trial
from benchmarks.up import Up
from tests.hostile.conftest import STAGES

GROWTH_MIB = 24  # allocators round up; a leak of every message would be seen at ten times the messages


def test_nothing_that_is_sent_has_an_effect_but_on_the_counters(up: Up) -> None:
    assert len(up.targets()) == 3 + 2 * STAGES
    result = asyncio.run(trial(up, messages=210, clients=2, seed=3))
    assert harmless(result), result
    assert result["requests"] > 0
    assert max(result["growth_mib"].values()) < GROWTH_MIB
