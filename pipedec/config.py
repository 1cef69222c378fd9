"""Settings of the service processes, from the environment. The only reader of `os.environ`.

The operator and `pipedec up` write these variables (`to_env`), the services read them (`from_env`). The manifest itself
comes as a file, so that nothing it says is said twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple, Self, get_type_hints

from pipedec.errors import ManifestError

DEFAULT_CACHE = Path("~/.cache/pipedec").expanduser()
DEFAULT_CLAIMS = Path("/var/run/pipedec/claims")


class Variable(NamedTuple):
    """The environment variable that a field is read from."""

    name: str
    doc: str
    parse: Callable[[str], object]  # raises ValueError, "must be ..."


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
            raise ValueError(f"must be a number from {low} to {high}")
        return int(text)

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return parse


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _tcp_address(text: str) -> str:
    if not re.fullmatch(r"tcp://[^\s/:]+:[0-9]{1,5}|tcp://\[[0-9a-fA-F:]+\]:[0-9]{1,5}", text):
        raise ValueError("must be tcp://host:port")
    return text


_port = _number(0, 65535)
_positive = _number(1, 1024)
_log_level = _one_of("DEBUG", "INFO", "WARNING", "ERROR")
_log_format = _one_of("text", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """What every service process is told."""

    manifest: Annotated[Path, Variable("PIPEDEC_MANIFEST", "File of the manifest.", _path)]
    bind_host: Annotated[str, Variable("PIPEDEC_BIND_HOST", "Local address that sockets listen on.", str)] = "127.0.0.1"
    advertise_host: Annotated[
        str, Variable("PIPEDEC_ADVERTISE_HOST", "Address that peers reach this process by; in a pod its IP.", str)
    ] = "127.0.0.1"
    keys_dir: Annotated[Path | None, Variable("PIPEDEC_KEYS_DIR", "Directory of CURVE keys.", _path)] = None
    insecure: Annotated[bool, Variable("PIPEDEC_INSECURE", "1: sockets without keys, for tests alone.", _flag)] = False
    model_cache: Annotated[Path, Variable("PIPEDEC_MODEL_CACHE", "Directory of downloaded weights.", _path)] = (
        DEFAULT_CACHE
    )
    claims_dir: Annotated[Path, Variable("PIPEDEC_CLAIMS_DIR", "Where pvc://claim/path is, as claim/path.", _path)] = (
        DEFAULT_CLAIMS
    )
    threads: Annotated[
        int | None, Variable("PIPEDEC_THREADS", "CPU threads. Default: the manifest's, else all cores.", _positive)
    ] = None
    device: Annotated[
        str, Variable("PIPEDEC_DEVICE", "Torch device, such as cuda:0; auto: an accelerator if there is one.", str)
    ] = "auto"
    log_level: Annotated[
        str | None,
        Variable("PIPEDEC_LOG_LEVEL", "Least severe level that is logged. Default: the manifest's.", _log_level),
    ] = None
    log_format: Annotated[
        str | None,
        Variable("PIPEDEC_LOG_FORMAT", "Format of log lines, text or json. Default: the manifest's.", _log_format),
    ] = None

    def __post_init__(self) -> None:
        if (self.keys_dir is None) != self.insecure:
            raise ManifestError(
                "PIPEDEC_KEYS_DIR",
                "is not set" if self.keys_dir is None else "is set together with PIPEDEC_INSECURE=1",
                "Give the directory of CURVE keys, or, for tests alone, PIPEDEC_INSECURE=1",
            )

    @classmethod
    @cache
    def variables(cls) -> Mapping[str, Variable]:
        """The environment variable of each field."""
        hints = get_type_hints(cls, include_extras=True)
        return MappingProxyType({field.name: hints[field.name].__metadata__[0] for field in fields(cls)})

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Reads the environment; an empty variable counts as absent. Raises `ManifestError` naming the variable."""
        values, required = {}, {field.name for field in fields(cls) if field.default is MISSING}
        for field, variable in cls.variables().items():
            if text := environ.get(variable.name, ""):
                try:
                    values[field] = variable.parse(text)
                except ValueError as error:
                    raise ManifestError(variable.name, f"is {text!r}, but {error}") from error
            elif field in required:
                raise ManifestError(variable.name, "is not set", variable.doc)
        return cls(**values)  # type: ignore[arg-type]  # each parser gives its field's type

    def to_env(self) -> dict[str, str]:
        """The variables that `from_env` reads this from; those that have their default are left out."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {field: getattr(self, field) for field in defaults}
        return {
            variable.name: str(int(value) if isinstance(value, bool) else value)
            for field, variable in self.variables().items()
            if (value := values[field]) != defaults[field]
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig(ProcessConfig):
    """Settings of a stage."""

    stage: Annotated[int, Variable("PIPEDEC_STAGE_INDEX", "Index of this stage, from 0.", _number(0, 63))]
    head_address: Annotated[
        str, Variable("PIPEDEC_HEAD_ADDRESS", "The draft process's control socket, tcp://host:port.", _tcp_address)
    ]
    data_port: Annotated[
        int, Variable("PIPEDEC_DATA_PORT", "Port for the predecessor's batches; 0: any free one.", _port)
    ] = 0
    metrics_port: Annotated[
        int, Variable("PIPEDEC_METRICS_PORT", "Port of /healthz, /readyz and /metrics; 0: any free one.", _port)
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftConfig(ProcessConfig):
    """Settings of the draft process: scheduler, draft model and endpoint (with /health, /ready and /metrics)."""

    control_port: Annotated[
        int, Variable("PIPEDEC_CONTROL_PORT", "Port on which stages register; 0: any free one.", _port)
    ] = 0
    verdict_port: Annotated[
        int, Variable("PIPEDEC_VERDICT_PORT", "Port for the last stage's verdicts; 0: any free one.", _port)
    ] = 0
    http_host: Annotated[str, Variable("PIPEDEC_HTTP_HOST", "Address that the endpoint listens on.", str)] = "127.0.0.1"
    http_port: Annotated[
        int | None,
        Variable("PIPEDEC_HTTP_PORT", "Port of the endpoint, 0: any free one. Default: the manifest's.", _port),
    ] = None
    drain_notice: Annotated[
        int,
        Variable(
            "PIPEDEC_DRAIN_NOTICE_SECONDS",
            "Seconds after SIGTERM in which requests are taken though the endpoint is not ready, so that none meets a "
            "closed door before all have heard of it. Default: 0.",
            _number(0, 3600),
        ),
    ] = 0
    api_key_file: Annotated[
        Path | None,
        Variable("PIPEDEC_API_KEY_FILE", "File with the key clients must send. Default: none is asked for.", _path),
    ] = None
    live_text: Annotated[
        bool | None,
        Variable("PIPEDEC_LIVE_TEXT", "1: the live page shows texts, 0: it does not. Default: the manifest's.", _flag),
    ] = None


def model_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Directory of downloaded weights, for programs that are not services."""
    return _path(text) if (text := environ.get("PIPEDEC_MODEL_CACHE")) else DEFAULT_CACHE


def traces_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether OpenTelemetry's own variables say where traces go, and do not switch them off."""
    ends = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return any(environ.get(end) for end in ends) and not off


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child process: this one's, with these changes."""
    return {**os.environ, **changes}
