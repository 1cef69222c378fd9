"""What `helm test` says when it cannot ask."""

from __future__ import annotations

from typing import Any

import pytest

from pipedec.errors import PipeDecError
from pipedec_operator import ask
from pipedec_operator.cluster import ClusterError


class Closed:
    """A cluster that lets nobody in."""

    def list(self, *args: Any) -> Any:
        raise ClusterError(403, "Forbidden", "may not list")


def test_a_namespace_that_may_not_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "connect", Closed)
    with pytest.raises(PipeDecError, match="pipedecdeployments in namespace lab: Forbidden: may not list"):
        ask.main("lab")
