"""Asks for completions until a file named `stop` is in its folder, without ever asking twice, and prints what became of
them: `python -c "$(cat load.py)" URL MODEL PROMPT TOKENS CLIENTS`. Needs urllib3 alone, and runs in a pod of its own.

Half of the clients keep their connection for as long as the server does, half make a new one for every request.
"""

import json
import sys
import threading
from pathlib import Path

import urllib3

STOP = Path("/tmp/stop")


class Client(threading.Thread):
    """One request after the other."""

    def __init__(self, url: str, body: dict[str, object], keeps: bool) -> None:
        super().__init__()
        self._url, self._body = f"{url}/completions", json.dumps(body).encode()
        self._headers = {"Content-Type": "application/json"} | ({} if keeps else {"Connection": "close"})
        self.texts: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        with urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, timeout=120) as pool:
            while not STOP.exists():
                self._ask(pool)

    def _ask(self, pool: urllib3.PoolManager) -> None:
        try:
            answer = pool.request("POST", self._url, body=self._body, headers=self._headers)
            if answer.status == 200:
                self.texts.append(json.loads(answer.data)["choices"][0]["text"])
            else:
                self.failures.append(f"{answer.status}: {answer.data.decode(errors='replace')}")
        except (urllib3.exceptions.HTTPError, OSError, ValueError, KeyError) as error:
            self.failures.append(repr(error))


def main(url: str, model: str, prompt: str, tokens: str, clients: str) -> None:
    body = {"model": model, "prompt": prompt, "max_tokens": int(tokens), "temperature": 0}
    started = [Client(url, body, keeps=bool(index % 2)) for index in range(int(clients))]
    for client in started:
        client.start()
    for client in started:
        client.join()
    texts = [text for client in started for text in client.texts]
    failures = [failure for client in started for failure in client.failures]
    print(json.dumps({"answers": len(texts), "texts": sorted(set(texts)), "failures": failures[:20]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
