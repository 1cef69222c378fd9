"""What was logged, as a person sees it."""

from __future__ import annotations

import pytest

from pipedec.logs import TextFormatter


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Every event so far, with its fields, a line each."""
    formatter = TextFormatter("test", {})
    return "\n".join(map(formatter.format, caplog.records))
