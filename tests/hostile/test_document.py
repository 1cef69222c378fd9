"""The service against its own OpenAPI document: what the document allows, and what it forbids, is answered as the
document says, by a real pipeline."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.hostile.trial import MODEL
from benchmarks.up import Up

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
SECONDS = 120.0  # until an answer is there
MOST = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "n": 2, "best_of": 2}


@pytest.fixture(scope="module")
def operations(up: Up) -> dict[str, APIOperation]:
    """By path."""
    schema = schemathesis.openapi.from_dict(httpx.get(f"{up.url}/openapi.json", trust_env=False).json())
    schema.config.update(base_url=up.url)
    return {operation.path: operation for operation in (found.ok() for found in schema.get_all_operations())}


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("route", ROUTES)
def test_every_answer_is_documented(operations: dict[str, APIOperation], route: str, mode: GenerationMode) -> None:
    statuses = set()

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(operations[route].as_strategy(mode))
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            case.body = modest(case.body, "max_output_tokens" if route == "/v1/responses" else "max_tokens")
        response = case.call(timeout=SECONDS)
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)

    ask()
    assert statuses >= {200 if mode is GenerationMode.POSITIVE else 400}


def modest(body: dict[str, Any], limit: str) -> dict[str, Any]:
    """The same request, but of the model that is there, and for few tokens, as the field `limit` says: a test has no
    time for more."""
    few = {limit: 3} | body
    for name, most in MOST.items():
        if type(few.get(name)) is int and few[name] > most:
            few[name] = most
    return few | {"model": MODEL} if isinstance(few.get("model"), str) else few
