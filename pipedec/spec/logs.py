"""How the processes of a pipeline log."""

from __future__ import annotations

from typing import Literal

from pipedec.spec.base import Strict

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class Logging(Strict):
    """What the pods log, one line per event; never a text of a client's."""

    level: LogLevel = "INFO"
    """Least severe level that the draft pod logs: of requests, the formation and the draft model."""
    stage_level: LogLevel = "INFO"
    """Least severe level that the stages log. They load their layers again when it is changed, as when format is."""
    format: Literal["text", "json"] = "text"
    """Of the lines: text for people, json for programs."""
