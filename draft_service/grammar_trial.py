"""Grammars come from clients: each is tried in a process of its own before the pipeline relies on it.

A JSON schema of a thousand references overflows a stack, and a regular expression of some kilobytes can take half a
minute to compile. The library has no limits for either; here such a grammar costs a process that nobody misses, and
the client learns why. What passes was compiled once, in less memory, stack and time than others have for it.

    python -m draft_service.grammar_trial     the process: JSON lines, a tokenizer and then grammars, to reasons
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import TracebackType
from typing import Self

import tokenizers

from pipedec.logs import fields
from pipedec.model.grammar import Grammars

STACK_BYTES = 4 << 20  # half of what threads have elsewhere
MEMORY_BYTES = 1 << 30
CPU_SECONDS = 0.5  # a stage compiles the grammar too, and all requests wait meanwhile
PATIENCE_SECONDS = 10.0  # by the clock, after which the process is killed
REMEMBERED = 256  # reasons
LONGEST_REASON = 1000  # characters: some quote the whole grammar

_log = logging.getLogger(__name__)

TOO_COMPLEX = "it is too complex; write a smaller one"


class GrammarTrial:
    """Tries grammars for one vocabulary. The process begins with the first of them. May be used by several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int) -> None:
        self._vocabulary = (backend, vocab_size)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._known = lru_cache(REMEMBERED)(self._try)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._end()

    def refusal(self, grammar: str) -> str:
        """Why no answer can be kept to this grammar, for its author; empty when one can. Takes milliseconds, at worst
        `PATIENCE_SECONDS`."""
        with self._lock:
            return self._known(grammar)

    def _try(self, grammar: str) -> str:
        if self._process is not None and self._process.poll() is not None:  # killed, but by no grammar
            self._end()
        process = self._process = self._process or self._begin()
        watchdog = threading.Timer(PATIENCE_SECONDS, process.kill)
        watchdog.start()
        try:
            reason = self._ask(process, grammar)
        finally:
            watchdog.cancel()
        if reason is None:
            self._end()
            _log.warning("grammar too complex", extra=fields(characters=len(grammar)))
        return TOO_COMPLEX if reason is None else reason

    def _begin(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a library's last words; the log has its own lines
            text=True,
        )
        backend, vocab_size = self._vocabulary
        self._ask(process, (backend.to_str(), vocab_size))
        return process

    def _ask(self, process: subprocess.Popen[str], question: object) -> str | None:
        """The answer, or None if the process has died of it."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(question), file=process.stdin, flush=True)
        except BrokenPipeError:
            return None
        answer = process.stdout.readline()
        return json.loads(answer) if answer else None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _reasons(lines: Iterator[str]) -> Iterator[str]:
    """Answers to each of the lines."""
    serialised, vocab_size = json.loads(next(lines))
    grammars = Grammars(tokenizers.Tokenizer.from_str(serialised), vocab_size)
    yield ""
    with ThreadPoolExecutor(1) as thread:
        for line in lines:
            yield thread.submit(_reason, grammars, json.loads(line)).result()


def _reason(grammars: Grammars, grammar: str) -> str:
    start = time.thread_time()
    reason = grammars.refusal(grammar)
    seconds = time.thread_time() - start
    if not reason and seconds > CPU_SECONDS:
        return TOO_COMPLEX
    return reason[:LONGEST_REASON]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the endpoint's to act upon
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.stack_size(STACK_BYTES)
    for reason in _reasons(iter(sys.stdin)):
        print(json.dumps(reason), flush=True)


if __name__ == "__main__":
    main()
