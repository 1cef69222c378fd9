"""What does being watched cost? Tokens/s of one pipeline alone, and with the live page open and metrics scraped.

    python -m benchmarks.observed --rounds 10 --max-tokens 64 --json

One run of SmolLM2, decoded turn by turn: unwatched, then with one watcher of `/live/events`, who reads every frame,
and a scrape of `/metrics` each second. Nothing is simulated. The ratio is of the medians of seconds per token after the
first; a pair is two turns that follow each other, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import openai

from benchmarks.overhead import URI, time_http
from benchmarks.up import running

SCRAPE_SECONDS = 1.0


def resource(stages: int, policy: str, threads: int) -> dict[str, object]:
    """The manifest; its draft is the target's own first layers."""
    spec = {
        "model": {"uri": URI, "dtype": "float32"},
        "draft": {"targetLayers": 6},
        "speculation": {"policy": policy},
        "pipeline": {"stages": stages},
        "serving": {"maxContext": 1024, "maxSequences": 1, "threads": threads},
    }
    kind = {"apiVersion": "pipedec.dev/v1alpha1", "kind": "PipeDecDeployment"}
    return {**kind, "metadata": {"name": "overhead"}, "spec": spec}


@contextmanager
def observers(url: str) -> Iterator[list[int]]:
    """A watcher and a scraper; the list grows by the size of every frame and every exposition that came."""
    over, came = threading.Event(), list[int]()

    def watch() -> None:
        with httpx.stream("GET", f"{url}/live/events", timeout=60) as reply:
            for line in reply.iter_lines():
                came.append(len(line))
                if over.is_set():
                    return

    def scrape() -> None:
        with httpx.Client() as client:
            while not over.wait(SCRAPE_SECONDS):
                came.append(len(client.get(f"{url}/metrics").raise_for_status().content))

    threads = [threading.Thread(target=each) for each in (watch, scrape)]
    for thread in threads:
        thread.start()
    try:
        yield came
    finally:
        over.set()
        for thread in threads:
            thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.observed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="pairs of turns (default 10)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens a turn (default 64)")
    parser.add_argument("--stages", type=int, default=1, help="default 1: with more, one machine measures itself")
    parser.add_argument("--policy", default="none", help="default none: every run has the same steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    alone, watched, came = [], [], 0
    with (
        running(resource(options.stages, options.policy, options.threads)) as up,
        openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", timeout=600) as client,
    ):
        time_http(client, options.max_tokens)
        for _ in range(options.rounds):
            alone.append(time_http(client, options.max_tokens))
            with observers(up.url) as seen:
                watched.append(time_http(client, options.max_tokens))
            came += len(seen)
    if came < options.rounds:
        raise RuntimeError("the observers saw nothing")
    result = {
        "alone_ms_per_token": 1000 * statistics.median(alone),
        "observed_ms_per_token": 1000 * statistics.median(watched),
        "ratio": statistics.median(alone) / statistics.median(watched),
        "median_of_pairs": statistics.median(a / w for a, w in zip(alone, watched, strict=True)),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print("alone {alone_ms_per_token:.2f} ms a token, observed {observed_ms_per_token:.2f} ms".format(**result))
        print("tokens/s while observed are {median_of_pairs:.4f} of those without (median of pairs)".format(**result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
