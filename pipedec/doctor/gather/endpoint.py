"""A running pipeline, asked over HTTP."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from pipedec.doctor.endpoint import Answer, EndpointFacts, Sample, served_models

TIMEOUT = 10.0  # seconds
COMPLETION_TIMEOUT = 120.0
MESSAGE_LENGTH = 300  # of the words of a stranger

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def gather_endpoint(url: str, api_key: str | None) -> EndpointFacts:
    """Asks every route once; one token is generated if the pipeline is ready."""
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        nobody = Answer(0, "a URL begins with http:// or https://")
        return EndpointFacts(base, nobody, nobody, nobody, None)
    health = _ask(f"{base}/health", api_key)
    if health.status == 0:
        return EndpointFacts(base, health, health, health, None)
    ready, models, metrics = (_ask(f"{base}{route}", api_key) for route in ("/ready", "/v1/models", "/metrics"))
    completion = None
    if ready.status == 200 and (served := served_models(models)):
        body = {"model": next(iter(served)), "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        completion = _ask(f"{base}/v1/completions", api_key, body)
    return EndpointFacts(base, health, ready, models, completion, _samples(metrics))


def _samples(answer: Answer) -> tuple[Sample, ...]:
    if answer.status != 200 or not isinstance(answer.body, str):
        return ()
    try:
        families = list(text_string_to_metric_families(answer.body))
    except (ValueError, LookupError):  # a page, say
        return ()
    return tuple(Sample(each.name, each.labels, each.value) for family in families for each in family.samples)


def _ask(url: str, api_key: str | None, body: dict[str, Any] | None = None) -> Answer:
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    start = time.monotonic()
    try:
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
        with _direct.open(request, timeout=TIMEOUT if body is None else COMPLETION_TIMEOUT) as reply:
            text = reply.read().decode(errors="replace")
            return Answer(reply.status, "", _parsed(text), time.monotonic() - start)
    except urllib.error.HTTPError as error:
        try:
            with error:
                parsed = _parsed(error.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            parsed = ""
        return Answer(error.code, _message(parsed) or f"status {error.code}", parsed, time.monotonic() - start)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Answer(0, str(getattr(error, "reason", error)))


def _message(parsed: Any) -> str:
    """The words of a refusal: OpenAI's way, or the first line of any other."""
    error = parsed.get("error", "") if isinstance(parsed, dict) else parsed
    words = error.get("message", "") if isinstance(error, dict) else error
    return str(words).strip().partition("\n")[0][:MESSAGE_LENGTH]


def _parsed(text: str) -> Any:
    """JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
