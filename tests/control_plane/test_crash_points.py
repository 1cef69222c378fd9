"""The operator killed before any of its API calls, and started again, comes to the same state. On a real API server."""

from __future__ import annotations

from typing import Any

import pytest

from pipedec_operator.names import Object
from tests.control_plane.live import Counting, Killed, Lab, Mortal
from tests.control_plane.samples import manifest

pytestmark = pytest.mark.e2e

STEPS: dict[str, tuple[Object | None, Object]] = {
    "create": (None, manifest(pipeline={"stages": 2})),
    "split": (manifest(pipeline={"stages": 2}), manifest(pipeline={"stages": 1})),
    "scale out": (manifest(pipeline={"stages": 1}), manifest(pipeline={"stages": 1}, replicas=2)),
    "scale in": (manifest(pipeline={"stages": 1}, replicas=2), manifest(pipeline={"stages": 1})),
    "suspend": (manifest(pipeline={"stages": 2}), manifest(pipeline={"stages": 2}, suspend=True)),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_operator_leaves_nothing_that_the_next_does_not_finish(lab: Lab, step: str) -> None:
    before, after = STEPS[step]
    expected, calls = _undisturbed(lab, before, after)
    assert calls > 8
    for at in range(calls):
        _start_over(lab, before)
        lab.write(after)
        with pytest.raises(Killed):
            lab.reconciler(Mortal(lab.api, at)).reconcile(lab.namespace, "lion")
        lab.settle()
        assert lab.state() == expected, f"killed before call {at} of {calls}"


def _undisturbed(lab: Lab, before: Object | None, after: Object) -> tuple[dict[str, Any], int]:
    _start_over(lab, before)
    lab.write(after)
    counting = Counting(lab.api)
    lab.reconciler(counting).reconcile(lab.namespace, "lion")
    lab.settle()
    return lab.state(), counting.calls


def _start_over(lab: Lab, before: Object | None) -> None:
    """The step's beginning: nothing at all, or a settled resource."""
    if before is None:
        lab.clear()
    else:
        lab.write(before)
        lab.settle()
