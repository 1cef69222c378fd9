"""An engine that says what a test wrote down, and a real server around the endpoint."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import ASGIApp
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from draft_service.api import serve
from draft_service.api.connections import ConnectionLimits
from draft_service.generation import EngineInfo, GenerationRequest, RequestStatistics, TokenEvent
from draft_service.text import Tokenizer
from pipedec.spec.report import PipelineReport
from pipedec.wire.messages import TokenLogprobs

MODEL = "tiny"
CONTEXT = 128
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}{{ suffix }}"
)


def byte_tokenizer(template: str | None = TEMPLATE, marks: Sequence[AddedToken] = ()) -> Tokenizer:
    """A token for each byte, the two that mark a chat's turns, and others."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|start|>", special=True), AddedToken("<|end|>", special=True)])
    backend.add_tokens(list(marks))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=template))


def tokens_of(tokenizer: Tokenizer, content: bytes) -> list[int]:
    """The tokens of a `byte_tokenizer` for these bytes, whether or not they are text."""
    ids = {tokenizer.token_bytes(token): token for token in range(256)}
    return [ids[bytes([byte])] for byte in content]


class Gate:
    """An event that another thread can set."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self.opened.set)


@dataclass
class ScriptedEngine:
    """Generates `script`, over and over, until an end token or the limit; keeps the contract of `Engine`.

    After `fail_after` tokens `failure` is raised; after `hold_after` nothing more comes until the request is closed,
    or the gate that is put into `held` is opened.
    """

    tokenizer: Tokenizer = field(default_factory=byte_tokenizer)
    info: EngineInfo = field(default_factory=lambda: EngineInfo(MODEL, CONTEXT, 258, ((0, 3), (3, 5))))
    ready: bool = True
    leaving: bool = False
    accepting: bool = True
    not_ready_reason: str = ""
    script: Sequence[int] = ()
    statistics: RequestStatistics | None = None
    failure: Exception = field(default_factory=RuntimeError)
    fail_after: int | None = None
    hold_after: int | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    held: queue.SimpleQueue[Gate] = field(default_factory=queue.SimpleQueue)
    closed: queue.SimpleQueue[GenerationRequest] = field(default_factory=queue.SimpleQueue)

    @property
    def report(self) -> PipelineReport:
        return PipelineReport.of(self.info.split, self.not_ready_reason, "")

    def say(self, text: str | bytes, *, end: bool = True) -> None:
        """Make this the script, with the end token after it or not."""
        content = text.encode() if isinstance(text, str) else text
        self.script = [*tokens_of(self.tokenizer, content), *(self.tokenizer.end_tokens if end else ())]

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        assert len(request.prompt) + request.max_tokens <= self.info.context
        self.requests.append(request)
        try:
            for count, token in enumerate(itertools.cycle(self.script)):
                if count == self.fail_after:
                    raise self.failure
                if count == self.hold_after:
                    gate = Gate()
                    self.held.put(gate)
                    await gate.opened.wait()
                event = self._event(request, count + 1, token)
                yield event
                if event.finish:
                    return
                await asyncio.sleep(0)
        finally:
            self.closed.put(request)

    def _event(self, request: GenerationRequest, count: int, token: int) -> TokenEvent:
        logprobs = None
        if request.sampling.logprobs is not None:
            likeliest = tuple((other, -0.5 * (rank + 1)) for rank, other in enumerate(range(request.sampling.logprobs)))
            logprobs = TokenLogprobs(-0.25, likeliest)
        if token in request.end_tokens and count > request.sampling.min_tokens:
            return TokenEvent(token, logprobs, "stop", self.statistics)
        if count == request.max_tokens:
            return TokenEvent(token, logprobs, "length", self.statistics)
        return TokenEvent(token, logprobs)


@dataclass
class Served:
    """A running server. `stop` is opened to stop it."""

    port: int
    stop: Gate


@contextmanager
def served(
    app: ASGIApp, host: str = "127.0.0.1", drain_seconds: int = 5, limits: ConnectionLimits | None = None
) -> Iterator[Served]:
    """`app` behind a real uvicorn in a thread."""
    started: queue.SimpleQueue[Served] = queue.SimpleQueue()

    async def run() -> None:
        stop = Gate()

        def tell(port: int) -> None:
            started.put(Served(port, stop))

        await serve(app, host, 0, stop.opened, drain_seconds=drain_seconds, limits=limits, on_listening=tell)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    server = started.get(timeout=30)
    try:
        yield server
    finally:
        if thread.is_alive():
            server.stop.open()
        thread.join()
