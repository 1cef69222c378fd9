"""One line per event: what happened, then the fields that tell of what, for people (text) or for programs (json).

    _log.info("epoch live", extra=fields(epoch=7, stages=4))

    2026-11-23T05:27:01.123Z INFO draft: epoch live epoch=7 stages=4
    {"time": "2026-11-23T05:27:01.123Z", "level": "INFO", "service": "draft", "event": "epoch live", "epoch": 7, ...}

Never a text of a client's, nor the tokens of one. The messages of exceptions may quote such a text, so where requests
are handled only types and frames of exceptions are logged. The standard library's formatters do all that is needed;
a logging library would be one more dependency of every image for the sake of these few lines.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from datetime import UTC, datetime

from pipedec.config import DraftConfig, StageConfig
from pipedec.spec import load_manifest

PRIVATE = ("draft_service.api", "draft_service.engine", "uvicorn", "asyncio")  # loggers near the texts of clients
_QUARTERS = 4
_PLAIN = re.compile(r"[^\s\"=]+")


def fields(**values: object) -> dict[str, object]:
    """The `extra` of a log call: fields of the event; those that are None are left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def configure(level: str, form: str, service: str, **process: object) -> None:
    """Log to stderr as text or json, everything as events of this service; `process` are fields of all of them."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(service, process) if form == "json" else TextFormatter(service, process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(max(logging.getLevelName(level), logging.WARNING))


def configure_draft(config: DraftConfig) -> None:
    """Log as the environment says, else as the manifest does. Raises `ManifestError`."""
    asked = load_manifest(config.manifest).spec.logging
    configure(config.log_level or asked.level, config.log_format or asked.format, "draft")


def configure_stage(config: StageConfig) -> None:
    """Log as the environment says, else as the manifest does. Raises `ManifestError`."""
    asked = load_manifest(config.manifest).spec.logging
    configure(config.log_level or asked.stage_level, config.log_format or asked.format, "stage", stage=config.stage)


class _Formatter(logging.Formatter):
    """`process` are fields of every event."""

    def __init__(self, service: str, process: dict[str, object]) -> None:
        super().__init__()
        self._service, self._process = service, process

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """UTC, as RFC 3339 has it."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        found: dict[str, object] = getattr(record, "fields", {})
        return found

    def _exception(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[1] is None:
            return ""
        if record.name.startswith(PRIVATE):
            return without_message(record.exc_info[1])
        return "".join(traceback.format_exception(record.exc_info[1])).rstrip()


class TextFormatter(_Formatter):
    """For people: the event, then `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        source = " ".join((self._service, *map(str, self._process.values())))
        told = "".join(f" {name}={_quoted(value)}" for name, value in self._fields(record).items())
        line = f"{self.formatTime(record)} {record.levelname} {source}: {_one_line(record.getMessage())}{told}"
        return f"{line}\n{exception}" if (exception := self._exception(record)) else line


class JsonFormatter(_Formatter):
    """For programs: one object per line."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "service": self._service,
            **self._process,
            "event": record.getMessage(),
            "logger": record.name,
            **self._fields(record),
        }
        if exception := self._exception(record):
            event["exception"] = exception
        return json.dumps(event, default=str)


class Milestones:
    """A `pipedec.models.Progress` that logs when something new begins, and every quarter of it."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._latest: tuple[str, int] = ("", 0)

    def __call__(self, what: str, fraction: float | None) -> None:
        reached = (re.sub(r"[\d.]+", "", what), int((fraction or 0.0) * _QUARTERS))
        if reached != self._latest:
            self._latest = reached
            percent = None if fraction is None else round(100 * fraction)
            self._log.info("loading", extra=fields(what=what, percent=percent))


def without_message(error: BaseException) -> str:
    """Where an exception came from, and its type, but not what it says."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{frames}{type(error).__module__}.{type(error).__qualname__}"


def _one_line(text: str) -> str:
    return text if text.isprintable() else " ".join(text.split())


def _quoted(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if _PLAIN.fullmatch(text) and text.isprintable():
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
