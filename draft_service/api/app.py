"""The routes of the endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fastapi import APIRouter, FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import pipedec
from draft_service.api.admission import Admission, Admitter
from draft_service.api.chunks import Chunks
from draft_service.api.errors import install_error_handlers
from draft_service.api.live import live_routes
from draft_service.api.middleware import BearerAuth, BodyLimit, RequestEnvelope
from draft_service.api.openai_types import (
    MAX_SEQUENCES,
    ChatBody,
    CompletionBody,
    GenerationBody,
)
from draft_service.api.openapi import DocumentedApp, Responses, answer, errors, response
from draft_service.api.replies import ChatReply, CompletionReply, Json
from draft_service.api.reply_types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    Model,
    ModelList,
    Status,
)
from draft_service.api.responses.conversation import as_chat, own_names
from draft_service.api.responses.reply import ResponseReply
from draft_service.api.responses.request import ResponsesBody
from draft_service.api.run import Run
from draft_service.api.streaming import ClientGone, Events, EventStream, while_connected
from draft_service.api.transcript import Delta
from draft_service.generation import Engine
from draft_service.grammar_trial import GrammarTrial
from draft_service.live.broadcast import Broadcast
from draft_service.text import Tokenizer
from draft_service.tracing import Tracer, untraced
from pipedec.errors import RequestError, UnavailableError
from pipedec.health import Health
from pipedec.metrics import expose
from pipedec.metrics.requests import RequestMetrics
from pipedec.spec.report import PATH as PIPELINE_PATH
from pipedec.spec.report import PipelineReport

LOADING_RETRY_SECONDS = 5.0
MIN_BODY_LIMIT = 1 << 20  # bytes; a longer context lets more in
CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is there to read it, but it is counted


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    metrics: RequestMetrics,
    *,
    api_key: Callable[[], str] | None = None,
    max_body_bytes: int = MIN_BODY_LIMIT,
    max_sequences: int = MAX_SEQUENCES,
    health: Health | None = None,
    live: Broadcast | None = None,
    tracer: Tracer | None = None,
    trial: GrammarTrial | None = None,
) -> FastAPI:
    """The endpoint of `engine`. `/metrics` exposes the registry of `metrics`; the `api_key` of the moment, if any,
    guards `/v1`. With `live` there is a page at `/` that shows it.

    Bodies of more than `max_body_bytes` and requests for more than `max_sequences` sequences are refused, and without
    a `trial` those for structured output.

    `/health` also fails when `health` does: an endpoint that answers before a head that hangs is of no use.
    """
    middleware = [Middleware(RequestEnvelope, responses=metrics.http_responses, leaving=lambda: engine.leaving)]
    if api_key is not None:
        middleware.append(Middleware(BearerAuth, api_key=api_key))
    middleware.append(Middleware(BodyLimit, max_bytes=max_body_bytes))
    app = DocumentedApp(
        title="PipeDec",
        version=pipedec.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=middleware,
    )
    install_error_handlers(app)
    endpoint = Endpoint(engine, tokenizer, metrics, health or Health(), tracer, max_sequences, trial)
    app.include_router(_service_routes(endpoint))
    app.include_router(_openai_routes(endpoint, with_key=api_key is not None))
    if live is not None:
        app.include_router(live_routes(live, api_key or (lambda: "")))
    return app


def _service_routes(endpoint: Endpoint) -> APIRouter:
    """Routes for probes and for Prometheus."""
    router = APIRouter(tags=["service"])
    alive: Responses = {200: {"model": Status, "description": "The process makes progress."}, **errors(503)}
    ready: Responses = {200: {"model": Status, "description": "The pipeline answers."}, **errors(503)}
    standing: Responses = {200: {"model": PipelineReport, "description": "How the pipeline stands."}}
    exposition: Responses = {200: {"content": {"text/plain": {}}, "description": "Prometheus' exposition."}}
    router.add_api_route("/health", endpoint.health, responses=alive)
    router.add_api_route("/ready", endpoint.ready, responses=ready)
    router.add_api_route(PIPELINE_PATH, endpoint.pipeline, responses=standing)
    router.add_api_route("/metrics", endpoint.metrics, responses=exposition, response_class=Response)
    return router


def _openai_routes(endpoint: Endpoint, with_key: bool) -> APIRouter:
    """Routes for clients. `BearerAuth` keeps the door; the dependency here only documents it."""
    router = APIRouter(
        prefix="/v1", tags=["OpenAI"], dependencies=[Security(HTTPBearer(auto_error=False))] if with_key else None
    )
    locked = (401,) if with_key else ()
    one: Responses = {200: {"model": Model}, **errors(404, *locked)}
    router.add_api_route("/models", endpoint.models, responses={200: {"model": ModelList}, **errors(*locked)})
    router.add_api_route("/models/{model:path}", endpoint.model, responses=one)
    failures = errors(400, *locked, 404, 413, 415, 429, 500, 503, 504)
    for path, handler, success in (
        ("/completions", endpoint.complete, answer(Completion, CompletionChunk)),
        ("/chat/completions", endpoint.chat, answer(ChatCompletion, ChatChunk)),
        ("/responses", endpoint.respond, response()),
    ):
        router.add_api_route(path, handler, methods=["POST"], responses={200: success, **failures})
    router.add_api_route("/responses/{id}", endpoint.stored, methods=["GET", "DELETE"], include_in_schema=False)
    return router


class Endpoint:
    """What the routes do."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        metrics: RequestMetrics,
        health: Health,
        tracer: Tracer | None,
        max_sequences: int,
        trial: GrammarTrial | None,
    ) -> None:
        self._engine, self._tokenizer, self._metrics, self._health = engine, tokenizer, metrics, health
        self._tracer = tracer
        self._admitter = Admitter(tokenizer, engine.info, max_sequences, trial)
        self._created = int(time.time())

    async def health(self) -> JSONResponse:
        if seconds := self._health.stuck_seconds():
            raise UnavailableError(f"the head has been stuck for {seconds:.0f} s", LOADING_RETRY_SECONDS)
        return JSONResponse({"status": "ok"})

    async def ready(self) -> JSONResponse:
        if not self._engine.ready:
            raise UnavailableError(self._engine.not_ready_reason, LOADING_RETRY_SECONDS)
        return JSONResponse({"status": "ok"})

    async def pipeline(self) -> JSONResponse:
        return JSONResponse(self._engine.report.model_dump(mode="json"))

    async def metrics(self, request: Request) -> Response:
        body, content_type = expose(self._metrics.registry, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def models(self) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, model: str) -> JSONResponse:
        self._check_model(model)
        return JSONResponse(self._model())

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        self._check(body)
        reply = CompletionReply(body.model, self._tokenizer, scored=body.logprobs is not None)
        chunks = Chunks(reply, body.stream_options)
        return await self._answer(body, await self._admitter.completion(body), reply.body, chunks, request)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        self._check(body)
        reply = ChatReply(body.model, self._tokenizer, scored=bool(body.logprobs))
        chunks = Chunks(reply, body.stream_options)
        return await self._answer(body, await self._admitter.chat(body), reply.body, chunks, request)

    async def respond(self, body: ResponsesBody, request: Request) -> Response:
        with own_names():
            chat = as_chat(body)
            self._check(chat)
            admission = await self._admitter.chat(chat)
        reply = ResponseReply(body, self._tokenizer)
        return await self._answer(chat, admission, reply.body, reply, request)

    async def stored(self, id: str) -> Response:
        raise RequestError(f"there is no response {id!r}: none is stored here, so send the whole input", status=404)

    async def _answer(
        self,
        body: GenerationBody,
        admission: Admission,
        reply: Callable[[Sequence[Delta], Run], Json],
        events: Events,
        request: Request,
    ) -> Response:
        """With `stream` the `events`, else the `reply` to one delta for each choice."""
        self._metrics.params_n.observe(body.n or 1)
        self._metrics.params_max_tokens.observe(max(each.max_tokens for each in admission.sequences))
        id, operation = request.state.request_id, "chat" if isinstance(body, ChatBody) else "text_completion"
        ended = self._tracer.begin(operation, id, request.headers) if self._tracer is not None else untraced
        run = Run(id, admission, self._engine, self._tokenizer, self._metrics, ended)
        if body.stream:
            return EventStream(events, run)
        said: list[list[Delta]] = [[] for _ in range(run.num_choices)]

        async def collect(delta: Delta) -> None:
            said[delta.index].append(delta)

        try:
            await while_connected(request.receive, run.drive(collect))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(reply([Delta.joined(deltas) for deltas in said], run))

    def _model(self) -> Model:
        info = self._engine.info
        return {
            "id": info.served_name,
            "object": "model",
            "created": self._created,
            "owned_by": "pipedec",
            "max_model_len": info.context,
        }

    def _check(self, body: GenerationBody) -> None:
        self._check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise RequestError("stream_options needs stream to be true", "stream_options")
        if not self._engine.accepting:
            raise UnavailableError(self._engine.not_ready_reason, LOADING_RETRY_SECONDS)

    def _check_model(self, name: str) -> None:
        served = self._engine.info.served_name
        if name != served:
            raise RequestError(f"there is no model {name!r} here, only {served!r}", "model", "model_not_found", 404)
