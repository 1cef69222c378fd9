"""Grammars come from clients: each is tried in a process of its own before the pipeline relies on it.

A JSON schema of a thousand references overflows a stack, and a regular expression of some kilobytes can take half a
minute to compile, or a gigabyte. The library has no limits for these; here such a grammar costs a process that nobody
misses, and the client learns why. What passes was compiled, and walked through for a while, in less memory, stack and
time than others have for it.

    python -m draft_service.grammar_trial     the process: JSON lines, a tokenizer and then sources, to outcomes
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import tokenizers

from pipedec.errors import UnavailableError
from pipedec.logs import fields
from pipedec.model.grammar import LONGEST_ERROR, Dialect, Grammars, Matcher, context_free_grammar
from pipedec.sampling_params import MAX_GRAMMAR

STACK_BYTES = 4 << 20  # half of what threads have elsewhere
MEMORY_BYTES = 32 << 20  # for one grammar, beside what the process has
PREPARING_SECONDS = 0.1  # of a processor: a stage compiles the grammar too, and all requests wait meanwhile
STEP_SECONDS = 0.02  # likewise, for one token
WALK = 32  # tokens
KILL_SECONDS = 1  # of a processor, for all of that
PATIENCE_SECONDS = 5.0  # by the clock, likewise
SILENCE_SECONDS = 15.0  # after which the process itself must be at fault
START_SECONDS = 60.0  # until the process can begin: it reads a tokenizer
MOST_WAITING = 32
REMEMBERED = 4096

TOO_COMPLEX = "it is too complex; write a smaller one"

Lengths = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """What a client wrote, or what was made of it."""

    text: str
    dialect: Dialect = "llguidance"


class Outcome(NamedTuple):
    """The grammar in llguidance's own words, or why no answer can be kept to it, for its author."""

    grammar: str
    refusal: str = ""


class GrammarTrial:
    """Tries grammars for one vocabulary, one after the other. The process begins with the first of them. Belongs to an
    event loop."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int) -> None:
        self._vocabulary = (backend, vocab_size)
        self._process: subprocess.Popen[str] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._pending: dict[Source, asyncio.Future[Outcome]] = {}
        self._known: dict[bytes, Outcome] = {}  # those asked for last come last; by digests, as sources are long

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if (process := self._process) is not None:
            _kill(process)  # whoever waits for it waits no longer
        self._thread.shutdown(cancel_futures=True)
        self._end()

    async def outcome(self, source: Source) -> Outcome:
        """What is known of this source: once those before it are tried, milliseconds, at worst seconds for each.
        Raises `UnavailableError` if too many wait, or none can be tried."""
        if (known := self._known.pop(key := _digest(source), None)) is not None:
            self._known[key] = known
            return known if known.refusal or known.grammar else Outcome(source.text)
        if (pending := self._pending.get(source)) is None:
            if len(self._pending) >= MOST_WAITING:
                raise UnavailableError(f"{MOST_WAITING} new forms of answers are being tried; ask again", status=429)
            pending = asyncio.get_running_loop().run_in_executor(self._thread, self._try, source)
            self._pending[source] = pending
            pending.add_done_callback(lambda done: self._note(source, done))
        return await asyncio.shield(pending)  # others may wait for the same

    def _note(self, source: Source, done: asyncio.Future[Outcome]) -> None:
        del self._pending[source]
        if done.cancelled() or done.exception() is not None:
            return
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        outcome = done.result()
        self._known[_digest(source)] = Outcome("") if outcome.grammar == source.text else outcome

    def _try(self, source: Source) -> Outcome:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = self._begin()
        if (answer := _ask(self._process, source, SILENCE_SECONDS)) is None:
            self._end()
            raise self._failed("died")
        if not answer:
            answer = ["", TOO_COMPLEX]
        outcome = Outcome(*answer)
        if outcome.refusal == TOO_COMPLEX:
            _log.warning("grammar too complex", extra=fields(characters=len(source.text)))
        return outcome

    def _begin(self) -> subprocess.Popen[str]:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            raise self._failed(f"cannot be started: {error}") from error
        backend, vocab_size = self._vocabulary
        if _ask(process, (backend.to_str(), vocab_size), START_SECONDS) is None:
            _kill(process)
            process.communicate()
            raise self._failed("did not start")
        return process

    def _failed(self, how: str) -> UnavailableError:
        _log.error("no grammar can be tried", extra=fields(reason=f"the process for it {how}"))
        return UnavailableError(f"the process that tries forms of answers {how}", retry_after=5.0)

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process.communicate()
            self._process = None


def _digest(source: Source) -> bytes:
    return hashlib.sha256("\0".join(source).encode()).digest()


def _kill(process: subprocess.Popen[str]) -> None:
    """With its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _ask(process: subprocess.Popen[str], question: object, seconds: float) -> list[str] | None:
    """The answer, or None if the process dies, or is killed because the time is over."""
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(seconds, _kill, (process,))
    watchdog.start()
    try:
        print(json.dumps(question), file=process.stdin, flush=True)
        answer = process.stdout.readline()
    except BrokenPipeError:
        return None
    finally:
        watchdog.cancel()
    return json.loads(answer) if answer else None


def _outcomes(lines: Iterator[str]) -> Iterator[Outcome | tuple[()]]:
    """Of each source, tried in a child of this process; empty where that died, or took too long."""
    serialised, vocab_size = json.loads(next(lines))
    grammars = Grammars(tokenizers.Tokenizer.from_str(serialised), vocab_size)
    lengths = grammars.lengths()
    yield ()
    for line in lines:
        source = Source(*json.loads(line))
        outcome = _in_a_child(grammars, lengths, source)
        if outcome and outcome.refusal == TOO_COMPLEX:  # a busy machine makes grammars seem slow, but seldom twice
            outcome = _in_a_child(grammars, lengths, source)
        yield outcome


def _in_a_child(grammars: Grammars, lengths: Lengths, source: Source) -> Outcome | tuple[()]:
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(reader)
        _limit()
        with os.fdopen(writer, "w") as answer:
            json.dump(_tried(grammars, lengths, source), answer)
        os._exit(0)
    os.close(writer)
    said = _last_words(reader, time.monotonic() + PATIENCE_SECONDS)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Outcome(*json.loads(said)) if said else ()


def _last_words(reader: int, end: float) -> bytes:
    """All that a child writes before it closes its end of the pipe; nothing if it does not by then."""
    said = b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            if not (piece := pipe.read(1 << 16)):
                return said
            said += piece
    return b""


def _limit() -> None:
    """What this process may use from now on; what its parent hears and says is not its own."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (KILL_SECONDS, KILL_SECONDS))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, mapped + MEMORY_BYTES))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)


def _tried(grammars: Grammars, lengths: Lengths, source: Source) -> Outcome:
    start = time.process_time()
    try:
        grammar = context_free_grammar(source.text) if source.dialect == "lark or gbnf" else source.text
    except ValueError as error:
        return Outcome("", str(error)[:LONGEST_ERROR])
    if len(grammar.encode()) > MAX_GRAMMAR:
        return Outcome("", f"it is longer than {MAX_GRAMMAR} bytes")
    matcher = grammars.matcher(grammar, ())
    if refusal := matcher.refusal():
        return Outcome("", refusal)
    if time.process_time() - start > PREPARING_SECONDS:
        return Outcome("", TOO_COMPLEX)
    return Outcome(grammar, _walked(matcher, lengths))


def _walked(matcher: Matcher, lengths: Lengths) -> str:
    """Why not, after an answer of random tokens and long ones."""
    rng = random.Random(0)
    for step in range(WALK):
        start = time.process_time()
        matcher.forced()
        allowed = matcher.allowed()
        if matcher.error:
            return matcher.error
        if allowed is None or not allowed.any():
            break
        longest = int(np.where(allowed, lengths, -1).argmax())
        matcher.consume([longest if step % 2 else rng.choice(np.flatnonzero(allowed).tolist())])
        if time.process_time() - start > STEP_SECONDS:
            return TOO_COMPLEX
    return ""


def main() -> None:
    os.nice(10)
    for outcome in _outcomes(iter(sys.stdin)):
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
