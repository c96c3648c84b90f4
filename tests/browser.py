"""A headless Chromium that a test drives through its own pipe: no driver, no port, no package beyond the browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("BEVSTACK_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or name one in BEVSTACK_CHROMIUM"
)


class Browser:
    """One tab of a Chromium, by the DevTools protocol over file descriptors 3 and 4; a context manager."""

    def __init__(self, width: int = 1400, height: int = 1000) -> None:
        self.size = width, height
        self.errors: list[str] = []
        self.requests: list[str] = []

    def __enter__(self) -> Browser:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self.writing = os.pipe()
        self.reading, from_browser = os.pipe()

        def place_pipes() -> None:
            high = [os.dup2(end, number, inheritable=True) for end, number in ((to_browser, 63), (from_browser, 64))]
            for end, number in zip(high, (3, 4), strict=True):
                os.dup2(end, number, inheritable=True)

        self.process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-dev-shm-usage", f"--user-data-dir={self.folder.name}",
                "--remote-debugging-pipe", "about:blank",
            ],
            preexec_fn=place_pipes, close_fds=False, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.session, self.rest = 0, None, b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.ask(f"{domain}.enable")
        width, height = self.size
        shape = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setDeviceMetricsOverride", **shape)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.reading)
        os.close(self.writing)
        self.folder.cleanup()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; errors of the page and its requests are noted meanwhile."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self.writing, content) :]
        while (answer := self._next()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            piece = os.read(self.reading, 1 << 20)
            assert piece, "the browser has ended"
            self.rest += piece
        content, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(content)
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        self.last = message
        return message

    def open(self, path: Path) -> None:
        """Show a file, wait until it is loaded."""
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while self.last.get("method") != "Page.loadEventFired":
            self._next()

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page; a promise is waited for."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """``mouseMoved``, ``mousePressed`` or ``mouseReleased`` at a place of the window."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        place = f"(() => {{const e = document.querySelector({json.dumps(selector)});"
        place += "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
        place += "return [r.left + r.width / 2, r.top + r.height / 2]})()"
        x, y = self.value(place)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def key(self, key: str, code: int) -> None:
        """Press a key by its name and number."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path) -> None:
        """Write a PNG of what the window shows."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))
