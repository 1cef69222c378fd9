"""What the revision depends on, and what it does not."""

from __future__ import annotations

from typing import Any

from pipedec.revision import revision
from pipedec.spec import DeploymentSpec

SPLIT = ((0, 4), (4, 8))


def spec(uri: str = "hf://a/b", dtype: str = "float32", **more: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": {"uri": uri, "dtype": dtype}, "pipeline": {"stages": 2}, **more})


def test_it_changes_with_all_that_stages_must_share() -> None:
    base = revision(spec(), SPLIT, 1, "commit")
    others = {
        revision(spec(uri="hf://a/c"), SPLIT, 1, "commit"),
        revision(spec(dtype="bfloat16"), SPLIT, 1, "commit"),
        revision(spec(), ((0, 5), (5, 8)), 1, "commit"),
        revision(spec(), SPLIT, 2, "commit"),
        revision(spec(), SPLIT, 1, "other commit"),
    }
    assert len(others | {base}) == 6


def test_the_draft_may_change_without_the_stages_reloading() -> None:
    with_draft = spec(draft={"targetLayers": 2}, speculation={"width": 4}, serving={"port": 8001})
    assert revision(with_draft, SPLIT, 1, "commit") == revision(spec(), SPLIT, 1, "commit")


def test_it_is_stable_across_processes() -> None:
    assert revision(spec(), SPLIT, 1, "commit") == "e0380a11432d"
