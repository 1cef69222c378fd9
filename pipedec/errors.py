"""Every error this project raises on purpose, in one tree.

PipeDecError
├── ManifestError    the manifest asks for something wrong; names the field and the remedy
├── ModelError       weights missing or corrupt, or an architecture we cannot run exactly
├── ProtocolError    a message that no well-behaved peer sends; dropped and counted, never fatal
├── RequestError     a client's request is wrong (HTTP 400, 404, 413); names the parameter
├── UnavailableError the service cannot take or finish the request now (HTTP 503, 429, 504)
└── UnfinishableError this one request cannot be finished, however often it is tried (HTTP 500)
"""

from __future__ import annotations


class PipeDecError(Exception):
    """Base of all errors raised on purpose; its text is meant for the person who has to act."""


class ManifestError(PipeDecError):
    """A manifest that cannot be honoured.

    `field` is the dotted path (`spec.pipeline.stages`), `remedy` what to write instead.
    """

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        self.field, self.problem, self.remedy = field, problem, remedy
        super().__init__(f"{field}: {problem}" + (f". {remedy}" if remedy else ""))


class ModelError(PipeDecError):
    """A model that cannot be loaded or would not be run exactly."""


class ProtocolError(PipeDecError):
    """A malformed or impossible message."""


class RequestError(PipeDecError):
    """A client's mistake. `param` is the request field in the OpenAI error shape, `status` the HTTP status."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        self.message, self.param, self.code, self.status = message, param, code, status
        super().__init__(message)


class UnavailableError(PipeDecError):
    """The service cannot serve this now. `retry_after` is in seconds; `status` is 503, 429 for a full queue,
    or 504 for a request that took too long, which is not to be tried again."""

    def __init__(self, message: str, retry_after: float = 1.0, status: int = 503) -> None:
        self.message, self.retry_after, self.status = message, retry_after, status
        super().__init__(message)


class UnfinishableError(PipeDecError):
    """The service fails at this request, and would again; others are not concerned."""
