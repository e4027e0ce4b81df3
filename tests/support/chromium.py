"""Headless Chromium, driven through the DevTools protocol over a pair of pipes: the standard library suffices."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE = 120
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--no-first-run",
    # a camera that shows a moving picture, and the user's consent to it
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


class Chromium:
    """A browser; `with Chromium(folder) as browser: browser.open(url)` and then `tab.evaluate(...)`."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        sandbox = () if os.geteuid() else ("--no-sandbox",)
        # Chromium takes commands at 3 and answers at 4
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *_FLAGS, *sandbox, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers = itertools.count(1)
        self._left = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, params: Mapping[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """Send a command and wait for its result; events that come meanwhile are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str) -> Tab:
        """A new tab with a page."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            tab.call(f"{domain}.enable")
        tab.call("Page.navigate", {"url": url})
        return tab

    def close(self) -> None:
        """End it and everything it started."""
        try:
            self.call("Browser.close")
            self._process.wait(_PATIENCE)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._from], [], [], _PATIENCE)[0]:
                raise TimeoutError(f"Chromium has said nothing for {_PATIENCE} s")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise OSError("Chromium has ended")
            self._left += data
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


class Tab:
    """A page that is open."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A command for this tab."""
        return self._browser.call(method, params, self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript; promises are waited for, exceptions raised."""
        answer = self.call(
            "Runtime.evaluate",
            {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True},
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"].get("exception", answer["exceptionDetails"])))
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression once it is true; raises TimeoutError with what the page says."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.05)
        raise TimeoutError(f"never true: {expression}; the page says {self.evaluate('document.body.innerText')!r}")

    def choose_file(self, selector: str, path: Path) -> None:
        """What a user does with a file input."""
        found = self.call("Runtime.evaluate", {"expression": f"document.querySelector({json.dumps(selector)})"})
        node = found["result"]["objectId"]
        self.call("DOM.setFileInputFiles", {"files": [str(path)], "objectId": node})

    def events(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of a kind so far."""
        self.evaluate("0")
        return [
            event["params"]
            for event in self._browser.events
            if event.get("method") == method and event.get("sessionId") == self._session
        ]

    def screenshot(self, path: Path, width: int = 1000, *, dark: bool = False) -> None:
        """The whole page as PNG, as wide as asked."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]})
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", metrics)
        shot = self.call("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))
