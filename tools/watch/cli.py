"""The command line of ``smet watch``, or ``python -m tools.watch``."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import shlex
import signal
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import NoReturn

from pretrain.command import program
from pretrain.errors import DataError, UserError
from pretrain.exit_codes import DONE
from pretrain.outside import printable
from pretrain.paths import path_argument
from pretrain.run_folder.reader import METRICS, SETTINGS
from pretrain.screen import refuse

from ..packages import named
from .runs import RunView, names_of
from .server import ADDRESS, Server

PORT = 7638
"""SMET on a telephone's keys."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program(named("tools.watch")),
        description="A live page of one or several runs: losses, topology, masks, ranks, checkpoints. It is served on "
        "this machine alone (127.0.0.1), fetches nothing from outside, and only reads.",
        epilog="For a run on another machine, start this there, and forward the port with the ssh command that it "
        "prints. Ctrl-C ends it; the run goes on.",
    )
    parser.add_argument("run", type=path_argument, nargs="+", metavar="RUN", help="run folder (train.output_dir)")
    parser.add_argument(
        "--port", type=_port, metavar="N", help=f"port of the page (default: {PORT}, or a free one where that is taken)"
    )
    parser.add_argument("--no-browser", action="store_true", help="open no browser")
    parser.add_argument("--json", action="store_true", help="print address and runs as one JSON object")
    return parser


def _port(given: str) -> int:
    if not given.isdecimal() or int(given) > 65535:
        raise argparse.ArgumentTypeError(f"'{given}' is no port, expected 0 (any free one) to 65535")
    return int(given)


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    options = build_parser().parse_args(argv)
    folders = list(dict.fromkeys(options.run))
    try:
        for folder in folders:
            require_possible(folder)
        runs = [RunView(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]
        server = serve(options.port, runs)
    except (UserError, OSError) as error:
        return refuse(error)
    with contextlib.suppress(OSError):
        os.nice(10)  # a run on this machine comes first
    sys.setswitchinterval(0.0005)  # seconds: whoever asks while files are read would wait 5 ms ten times over
    _tell(server, folders, options)
    threading.Thread(target=_read_ahead, args=[runs], daemon=True).start()
    if not options.no_browser and _has_screen():
        threading.Thread(target=webbrowser.open, args=[address(server)], daemon=True).start()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("watch ended; the runs go on", flush=True)
    finally:
        server.server_close()
    return DONE


def require_possible(folder: Path) -> None:
    """Refuse what will never be a run folder. One that is not there yet is waited for.

    Raises:
        DataError: a file, or a folder of run folders.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file, expected a run folder (train.output_dir of a run)")
    if folder.is_dir() and not _is_run(folder):
        inside = sorted(str(path) for path in folder.iterdir() if path.is_dir() and _is_run(path))
        if inside:
            some = shlex.join(inside[:5]) + (f" and {len(inside) - 5} more" if len(inside) > 5 else "")
            raise DataError(f"{folder} is no run folder, but holds some; give one or more of them: {some}")


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SETTINGS, METRICS))


def serve(port: int | None, runs: list[RunView]) -> Server:
    """A server at ``port``, or at ``PORT`` or any free one.

    Raises:
        DataError: the port that was asked for is taken or not allowed.
    """
    if port is None:
        try:
            return Server(PORT, runs)
        except OSError:
            return Server(0, runs)
    try:
        return Server(port, runs)
    except OSError as error:
        raise DataError(
            f"--port {port} cannot be had ({error.strerror}), expected a free one; leave it out to have one chosen"
        ) from None


def address(server: Server) -> str:
    """Where the page is."""
    return f"http://{ADDRESS}:{server.server_address[1]}/"


def _tell(server: Server, folders: list[Path], options: argparse.Namespace) -> None:
    port = server.server_address[1]
    ssh = f"ssh -N -L {port}:{ADDRESS}:{port} {shlex.quote(f'{_user()}@{socket.gethostname()}')}"
    missing = [folder for folder in folders if not _is_run(folder)]
    if options.json:
        told = {"url": address(server), "ssh": ssh, "runs": list(map(str, folders)), "waits": list(map(str, missing))}
        print(json.dumps(told), flush=True)
        return
    print(printable(f"watching {', '.join(map(str, folders))} at {address(server)} (Ctrl-C ends it)"))
    print(f"from another machine: {ssh}, and open {address(server)} there", flush=True)
    for folder in missing:
        print(printable(f"{folder} holds no run yet: waiting for it"), flush=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this number, as in a container
        return "USER"


def _has_screen() -> bool:
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _read_ahead(runs: list[RunView]) -> None:
    for run in runs:
        run.read_all()


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
