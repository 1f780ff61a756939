"""``python -m tools.watch`` as a process of its own, asked over HTTP."""

from __future__ import annotations

import atexit
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tests.tools.texts import ROOT


class Watch:
    """Started over ``runs``, at a free port."""

    def __init__(self, *runs: Path, options: Sequence[str] = ("--json", "--port", "0")):
        command = [sys.executable, "-m", "tools.watch", "--no-browser", *options, *map(str, runs)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        atexit.register(self.process.kill)  # where a test fails before it ends what it started
        assert self.process.stdout is not None
        self.told = json.loads(self.process.stdout.readline())
        self.url: str = self.told["url"]

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, content) of an answer."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def news(self, have: dict[str, Any] | None = None) -> dict[str, Any]:
        """What is new to whoever has ``have``."""
        status, _, content = self.ask(f"/news?have={quote(json.dumps(have or {}))}")
        assert status == 200, content
        return dict(json.loads(content))

    def end(self, how: int = signal.SIGINT) -> tuple[int, str, str]:
        """(exit code, rest of stdout, stderr) after Ctrl-C."""
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err
