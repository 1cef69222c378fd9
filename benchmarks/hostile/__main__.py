"""Is there a message that hurts?

    python -m benchmarks.hostile --messages 10000 --requests 1000 --seed 1 --json

Starts a pipeline of a tiny model, keeps honest clients asking, and sends to every port of every process: random bytes,
broken handshakes, ZeroMQ without a key and with a wrong one, HTTP that is none, and with the right key messages that
are broken, of the wrong shape, too large, of an old epoch, or registrations that are somebody else's. Then as many
requests as are wanted at once, of random fields right and wrong: each must get an answer that the service's own OpenAPI
document has. Exits with 1 if a request failed or changed, a process was restarted, an epoch was lost, or something was
not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.hostile.storm import storm
from benchmarks.hostile.trial import HIDDEN, harmless, resource, trial
from benchmarks.up import running
from tests.tiny import tiny_model


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=10_000, help="default 10000")
    parser.add_argument("--requests", type=int, default=1000, help="at once (default 1000)")
    parser.add_argument("--stages", type=int, default=2, help="default 2")
    parser.add_argument("--clients", type=int, default=4, help="that ask all the time (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder), hidden=HIDDEN)
        with running(resource(model, options.stages)) as up:
            result = asyncio.run(trial(up, options.messages, options.clients, options.seed))
            statuses = asyncio.run(storm(up.url, options.requests, options.seed))
            result["answers"] = {str(status): number for status, number in sorted(statuses.items())}
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 0 if harmless(result) else 1


if __name__ == "__main__":
    sys.exit(main())
