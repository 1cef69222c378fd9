"""`pipedec up`, `generate` and `doctor` as a user runs them, with the real services and a tiny model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread

import psutil
import pytest
from transformers import AutoTokenizer

from benchmarks.up import services
from tests.cli.test_commands import run
from tests.cli.test_doctor import checks
from tests.tiny import reference_greedy

PIPEDEC = (sys.executable, "-m", "pipedec.cli")
PROMPT = "Hello"


@pytest.fixture(scope="module")
def expected(model: Path) -> str:
    """What transformers' generate() says."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(PROMPT)["input_ids"]
    return str(tokenizer.decode(reference_greedy(model, ids, 24), skip_special_tokens=True))


class Up:
    """A running `pipedec up`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            (*PIPEDEC, "up", *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._lines: Queue[str] = Queue()
        self._told = ""
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._lines.put(line)

    def until(self, pattern: str) -> re.Match[str]:
        """The first match in what it says from here on."""
        while not (found := re.search(pattern, self._told)):
            self._told += self._lines.get(timeout=120)
        self._told = self._told[found.end() :]
        return found

    def interrupt(self) -> int:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        _, left = psutil.wait_procs(children, 10)
        assert left == []
        self._reader.join()
        return code


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text("secret\n")
    return file


@pytest.fixture(scope="module")
def up(manifest: Path, key: Path) -> Iterator[Up]:
    """For all tests here; the last one ends it."""
    running = Up("-f", str(manifest), "--port", "0", "--api-key-file", str(key))
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="module")
def url(up: Up) -> str:
    return up.until(r"tiny is served at (http://127\.0\.0\.1:\d+)/v1 by 2 stages")[1]


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (*PIPEDEC, "generate", "--raw", "--max-tokens", "24", PROMPT, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_doctor_examines_it(manifest: Path, url: str, key: Path) -> None:
    code, out, err = run("doctor", "-f", str(manifest), "--url", url, "--api-key-file", str(key), "--json")
    assert code == 0, out + err
    found = checks(out)
    assert found["completion"]["message"].startswith("one token in ")
    assert found["models"]["message"] == "tiny (up to 128 tokens)"
    assert found["stages"]["message"] == "2 stages, none was ever lost"
    assert found["hit rate"]["level"] == "skip"
    assert found["KV slots"]["level"] == "ok"


def test_the_doctor_asks_for_a_key_that_is_missing(url: str) -> None:
    code, out, _ = run("doctor", "--url", url, "--json")
    assert code == 2
    assert checks(out)["models"]["remedy"] == "Give it with --api-key-file"


def test_it_answers(url: str, key: Path, expected: str) -> None:
    answer = generate("--url", url, "--api-key-file", str(key))
    assert (answer.returncode, answer.stdout) == (0, expected + "\n")
    assert re.search(r"24 tokens in .* tokens/s.*hit rate \d+%, \d\.\d\d tokens per step", answer.stderr)


def test_it_survives_a_killed_stage_and_ends_cleanly(up: Up, url: str, key: Path, expected: str) -> None:
    services(psutil.Process(up.process.pid))["stage 1"].send_signal(signal.SIGKILL)
    up.until("stage 1 was killed by SIGKILL; it is started again in 1 s")
    up.until("ready again")
    assert generate("--url", f"{url}/v1/", "--api-key-file", str(key)).stdout == expected + "\n"
    assert up.interrupt() == 0


def test_a_pipeline_for_one_request(manifest: Path, expected: str) -> None:
    alone = manifest.with_name("one-stage.yaml")
    alone.write_text(manifest.read_text().replace("stages: 2", "stages: 1"))
    answer = generate("-f", str(alone), "--policy", "none")
    assert (answer.returncode, answer.stdout) == (0, expected + "\n"), answer.stderr
