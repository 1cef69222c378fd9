"""How an event becomes a line, and what never becomes part of one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipedec import logs
from pipedec.config import DraftConfig, StageConfig
from pipedec.logs import JsonFormatter, Milestones, TextFormatter, fields

MANIFEST = """
apiVersion: pipedec.dev/v1alpha1
kind: PipeDecDeployment
metadata: {name: lion}
spec: {model: {uri: "hf://a/b"}, pipeline: {stages: 2}, logging: {level: WARNING, stageLevel: DEBUG, format: json}}
"""


def record(event: str, name: str = "pipedec.x", error: Exception | None = None, **values: object) -> logging.LogRecord:
    trace = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord(name, logging.INFO, "x.py", 1, event, (), trace)
    made.__dict__.update(fields(**values))
    made.created = 1795411039.0425
    return made


def raised(message: str) -> Exception:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_text_is_for_people() -> None:
    formatter = TextFormatter("stage", {"stage": 3})
    line = formatter.format(record("epoch joined", epoch=7, reason='it\'s "new"', seconds=0.123456789, nothing=None))
    assert (
        line == '2026-11-23T05:17:19.042Z INFO stage 3: epoch joined epoch=7 reason="it\'s \\"new\\"" seconds=0.123457'
    )


def test_json_is_for_programs() -> None:
    line = JsonFormatter("stage", {"stage": 3}).format(record("epoch joined", epoch=7, model=Path("/m"), nothing=None))
    assert json.loads(line) == {
        "time": "2026-11-23T05:17:19.042Z", "level": "INFO", "service": "stage", "stage": 3, "event": "epoch joined",
        "logger": "pipedec.x", "epoch": 7, "model": "/m",
    }  # fmt: skip


@pytest.mark.parametrize("formatter", [TextFormatter("draft", {}), JsonFormatter("draft", {})])
def test_an_event_is_one_line(formatter: logging.Formatter) -> None:
    line = formatter.format(record("two\nlines", value="a\nb\u2028c"))
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("formatter", [TextFormatter("draft", {}), JsonFormatter("draft", {})])
def test_what_an_exception_says_is_left_out_where_it_may_quote_a_client(formatter: logging.Formatter) -> None:
    error = raised("of a secret")
    for name in ("draft_service.api.middleware", "uvicorn.error", "asyncio"):
        line = formatter.format(record("request failed", name, error))
        assert "secret" not in line
        assert "ValueError" in line
        assert "in raised" in line  # where it came from
    assert "of a secret" in formatter.format(record("step failed", "stage_service.loop", error))


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was when the test is over."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers
    root.handlers = []
    yield root
    root.setLevel(level)
    root.handlers = handlers


def test_the_manifest_says_how_each_service_logs(
    tmp_path: Path, root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(MANIFEST)
    stage = StageConfig(manifest=manifest, insecure=True, stage=1, head_address="tcp://a:1")
    logs.configure_stage(stage)
    root.debug("hello", extra=fields(epoch=1))
    told = json.loads(capsys.readouterr().err)
    assert (told["service"], told["stage"], told["level"], told["epoch"]) == ("stage", 1, "DEBUG", 1)

    logs.configure_draft(DraftConfig(manifest=manifest, insecure=True))
    root.info("hello")
    assert capsys.readouterr().err == ""
    logs.configure_draft(DraftConfig(manifest=manifest, insecure=True, log_level="INFO", log_format="text"))
    root.info("hello")
    assert capsys.readouterr().err.endswith(" INFO draft: hello\n")


def test_loading_is_told_by_quarters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tell = Milestones(logging.getLogger("x"))
    for percent in range(101):
        tell(f"fetching, {percent} of 100 MB", percent / 100)
    tell("preparing", None)
    assert [each.__dict__["fields"]["percent"] for each in caplog.records[:-1]] == [0, 25, 50, 75, 100]
    assert caplog.records[-1].__dict__["fields"] == {"what": "preparing"}
