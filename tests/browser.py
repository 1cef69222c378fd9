"""A real Chromium without a window, driven over its DevTools protocol on two pipes: no port, no package."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; install Debian's package chromium")
DEADLINE = 60.0  # seconds for anything that a page is to do

Json = dict[str, Any]


class Page:
    """One tab. `problems`: what its console and its network complained of; `requests`: every URL it asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out = os.fdopen(to_browser, "wb", buffering=0)
        self._in = os.fdopen(from_browser, "rb")
        self._ids = itertools.count(1)
        self._session: str | None = None
        self._buffer = b""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Json:
        """One command and its result."""
        number = next(self._ids)
        message: Json = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: Json = answer["result"]
        return result

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait, in the page, until a JavaScript expression is true; it is looked at with every picture drawn."""
        waiting = (
            "new Promise((resolve, reject) => {"
            f"const end = performance.now() + {1000 * DEADLINE};"
            f"const look = () => ({condition}) ? resolve(true) : performance.now() > end"
            "  ? reject(new Error('never came true')) : requestAnimationFrame(look);"
            "look(); })"
        )
        answer = self.call("Runtime.evaluate", expression=waiting, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{condition}: {self.evaluate('document.body.innerText')}"

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1.0) -> None:
        """The window's size, and the colours that its user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def press(self, key: str, code: int) -> None:
        """A key on the keyboard, by its name and its number."""
        text = {"Enter": "\r", "Space": " "}.get(key)
        named = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        down = named | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, file: Path, *, whole: bool = True) -> Path:
        """A PNG of the page; `whole`: also of what is below the window's edge."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))
        return file

    def close(self) -> None:
        """Ends the browser."""
        self._session = None
        self.call("Browser.close")
        self._out.close()
        self._in.close()

    def _read(self) -> Json:
        while b"\0" not in self._buffer:
            data = self._in.read1(1 << 16)  # type: ignore[union-attr]
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: Json = json.loads(message)
        return answer

    def _note(self, event: Json) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(str(params["args"]))
            case "Runtime.exceptionThrown":
                self.problems.append(str(params["exceptionDetails"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A Chromium with one empty page; its profile is in `folder`."""
    assert CHROMIUM is not None
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    spare = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10) for descriptor in (their_in, their_out)]
    command = [
        *(CHROMIUM, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run"),
        *("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"),
        *(("--no-sandbox",) if os.geteuid() == 0 else ()),
    ]

    def become() -> None:  # Chromium reads from descriptor 3 and writes to 4
        for descriptor, number in zip(spare, (3, 4), strict=True):
            os.dup2(descriptor, number, inheritable=True)

    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(3, 4), preexec_fn=become
    ) as process:
        for descriptor in (their_in, their_out, *spare):
            os.close(descriptor)
        page = Page(our_out, our_in)
        try:
            yield page
        finally:
            page.close()
            process.wait(DEADLINE)
