"""The page over HTTP, for this machine alone: a table of fixed answers, none of which leads into the file system."""

from __future__ import annotations

import gzip
import json
import re
import secrets
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pretrain.errors import UserError
from pretrain.outside import parse_json
from pretrain.run_folder.reader import CHECKPOINTS

from .columns import number
from .lines import text
from .picture import Pictures
from .runs import RunView

ADDRESS = "127.0.0.1"
_NAMED = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
"""By these names the page may be called, at any port, since ssh forwards another one. A name that another page had
pointed at this machine is none of them."""
STATIC = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
WORTH_PACKING = 2000
"""Bytes."""


class Refused(Exception):
    """A request that gets ``status`` and one line."""

    def __init__(self, status: HTTPStatus, line: str):
        super().__init__(line)
        self.status = status


class Server(ThreadingHTTPServer):
    """Serves the page of ``runs``.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, port: int, runs: Sequence[RunView]):
        self.runs = runs
        self.pictures = [Pictures(run.folder / CHECKPOINTS) for run in runs]
        self.name = secrets.token_hex(8)
        """By which a page knows that another server answers."""
        self.files = {f"/{path.relative_to(STATIC)}": path.read_bytes() for path in STATIC.rglob("*.*") if _kind(path)}
        self.files["/"] = self.files.pop("/index.html")
        super().__init__((ADDRESS, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line; none about a reader who went away."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            line = text(f"warning: an answer failed: {type(error).__name__}: {error}")
            print(line, file=sys.stderr, flush=True)

    def news(self, query: dict[str, str]) -> dict[str, Any]:
        """What is new of all runs; ``have`` = for each run, by its number, the tokens of what is known."""
        try:
            have = parse_json(query.get("have", "{}"))
        except ValueError:
            have = None
        if not isinstance(have, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "have is no JSON object")
        known = [have.get(str(at)) for at in range(len(self.runs))]
        runs = [run.news(one if isinstance(one, dict) else {}) for run, one in zip(self.runs, known, strict=True)]
        return {"server": self.name, "now": time.time(), "runs": runs}

    def window(self, query: dict[str, str]) -> dict[str, Any]:
        """The metrics of the run ``run`` between the steps ``from`` and ``to``."""
        low, high = (number(_decimal(query.get(key, ""))) for key in ("from", "to"))
        if not low <= high:
            raise Refused(HTTPStatus.BAD_REQUEST, "from and to are no steps")
        return self.runs[self._run(query)].window(low, high)

    def mask(self, query: dict[str, str]) -> dict[str, Any]:
        """The picture of the mask of ``layer`` in the newest checkpoint of the run ``run``; or why there is none."""
        try:
            return self.pictures[self._run(query)].of(query.get("layer"))
        except (UserError, OSError) as error:
            return {"problem": text(error)}
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
            return {"problem": text(f"the checkpoint cannot be shown: {type(error).__name__}: {error}")}

    def _run(self, query: dict[str, str]) -> int:
        given = query.get("run", "")
        if not given.isdecimal() or len(given) > 4 or int(given) >= len(self.runs):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such run")
        return int(given)


def _kind(path: Path) -> str | None:
    return KINDS.get(path.suffix)


def _decimal(given: str) -> float | None:
    try:
        return float(given)
    except ValueError:
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "smet-watch", ""
    timeout = 60.0
    disable_nagle_algorithm = True
    """Headers and content are two writes: the second would wait for the reader to acknowledge the first."""
    server: Server

    def do_GET(self) -> None:
        """Answer, or refuse in one line."""
        try:
            content, kind = self._found()
            self._send(HTTPStatus.OK, content, kind)
        except Refused as refused:
            self._send(refused.status, f"{refused}\n".encode(), "text/plain; charset=utf-8")
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # whoever asked went away

    def _found(self) -> tuple[bytes, str]:
        if _NAMED.fullmatch(self.headers.get("Host") or "") is None:
            raise Refused(HTTPStatus.FORBIDDEN, "this page is for 127.0.0.1 and localhost alone")
        try:
            url = urlsplit(self.path)
        except ValueError:
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no address of a page") from None
        if url.path in self.server.files:
            return self.server.files[url.path], KINDS[Path(url.path).suffix or ".html"]
        answer = {"/news": self.server.news, "/window": self.server.window, "/mask": self.server.mask}.get(url.path)
        if answer is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        return json.dumps(answer(query), allow_nan=False).encode(), "application/json"

    def _refuse_method(self) -> None:
        self.close_connection = True  # a body may follow, which nobody reads
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET is answered\n", "text/plain; charset=utf-8")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse_method

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        packed = len(content) > WORTH_PACKING and "gzip" in (self.headers.get("Accept-Encoding") or "")
        if packed:
            content = gzip.compress(content, 1)
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""
