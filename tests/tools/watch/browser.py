"""A real browser without a window, driven over DevTools' pipe: what a person does with the page, and sees there."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
PATIENCE = 30.0
"""Seconds for what takes a moment; a test that measures gives its own."""


class Browser:
    """Chromium of the system, with one page at a time. A missing one fails the test."""

    def __init__(self, folder: Path):
        program = shutil.which("chromium") or pytest.fail("no chromium found, expected one; launch/setup_env.sh --dev")
        (theirs, self._to), (self._from, answers) = os.pipe(), os.pipe()
        # The pipe is file descriptor 3 (to the browser) and 4 (from it); here they may be anything below that.
        theirs, answers = (fcntl.fcntl(one, fcntl.F_DUPFD, 20) for one in (theirs, answers))
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-extensions", "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe",
            f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{theirs} 4>&{answers}', program, *options],
            pass_fds=(theirs, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for one in (theirs, answers):
            os.close(one)
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        half = b""
        while piece := os.read(self._from, 1 << 16):
            *whole, half = (half + piece).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers[message["id"]].put(message)
                else:
                    self.events.append(message)

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of DevTools, and return what it answers."""
        number = next(self._numbers)
        self._answers[number] = queue.Queue()
        message = {"id": number, "method": method, "params": parameters}
        data = json.dumps({**message, "sessionId": session} if session else message).encode() + b"\0"
        os.write(self._to, data)
        answer = self._answers[number].get(timeout=PATIENCE)
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    def page(self, width: int = 1280, height: int = 900) -> Page:
        """A new page, blank."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send("Emulation.setFocusEmulationEnabled", enabled=True)
        page.resize(width, height)
        return page

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)


class Page:
    """One page."""

    def __init__(self, browser: Browser, session: str, target: str):
        self.browser, self.session, self.target = browser, session, target

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """See ``Browser.send``."""
        return self.browser.send(method, self.session, **parameters)

    def open(self, url: str) -> None:
        """Go there."""
        self.send("Page.navigate", url=url)

    def leave(self) -> None:
        """Go to a blank page: the one before asks for nothing any more."""
        self.open("about:blank")
        self.until("location.href === 'about:blank'")

    def close(self) -> None:
        """Away with it."""
        self.browser.send("Target.closeTarget", targetId=self.target)

    def resize(self, width: int, height: int, dark: bool = False, scale: float = 1.0) -> None:
        """Size in CSS pixels, and what the system says of dark colours."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise what it comes to."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What a reader sees there."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def until(self, expression: str, within: float = PATIENCE) -> float:
        """Wait until an expression is true; returns the seconds that took."""
        begin = time.monotonic()
        while not self.js(expression):
            if time.monotonic() - begin > within:
                pytest.fail(f"not within {within} s: {expression}\n{self.text('main')[:3000]}\n{self.errors()}")
            time.sleep(0.03)
        return time.monotonic() - begin

    def sees(self, text: str, selector: str = "body", within: float = PATIENCE) -> float:
        """Wait until a text is to be read; returns the seconds that took."""
        where, what = json.dumps(selector), json.dumps(text)
        return self.until(f"(document.querySelector({where})?.innerText ?? '').includes({what})", within)

    def press(self, key: str) -> None:
        """Strike a key."""
        code = KEYS.get(key)
        more = {"windowsVirtualKeyCode": code} if code else {"text": key}
        self.send("Input.dispatchKeyEvent", type="keyDown" if code is None else "rawKeyDown", key=key, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Press the mouse in one place, and let it go in another."""
        moves = [("Moved", x0, y0, 0), ("Pressed", x0, y0, 1), ("Moved", x1, y1, 1), ("Released", x1, y1, 0)]
        for kind, x, y, buttons in moves:
            button = "left" if buttons or kind == "Released" else "none"
            more = {"x": x, "y": y, "button": button, "buttons": buttons, "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", **more)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page as it is."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _own(self) -> list[dict[str, Any]]:
        return [event for event in self.browser.events if event.get("sessionId") == self.session]

    def errors(self) -> list[str]:
        """All that went to the console as an error or a warning, and exceptions that nobody caught."""
        found = []
        for event in self._own():
            method, what = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(what["exceptionDetails"])[:600])
            elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(what["args"])[:600])
            elif method == "Page.javascriptDialogOpening":
                found.append(f"a script of somebody else ran: {what['message']}")
            elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
                found.append(json.dumps(what["entry"])[:600])
        return found

    def fetched(self) -> list[str]:
        """Addresses of everything that the page has asked for."""
        return [e["params"]["request"]["url"] for e in self._own() if e["method"] == "Network.requestWillBeSent"]
