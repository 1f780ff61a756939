"""A run killed at any moment and started again gives the bytes of a run that was never disturbed."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pretrain.data.writer import publish
from tests.tools.texts import ROOT, make_documents, write_jsonl
from tools.preprocess import main

KILLS = 20


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """About 2 MB with a bad record here and there, so that rejects are resumed as well."""
    path = write_jsonl(tmp_path / "in.jsonl", make_documents(9000, words=70))
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(0, len(lines), 500):
        lines[number] = lines[number][:20] + b"\n"
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize("compressed", [False, True], ids=["ranges", "stream"])
def test_twenty_kills_leave_no_trace(tmp_path: Path, model: str, source: Path, compressed: bool, monkeypatch) -> None:
    # Small units, so that a run of a second has many moments to be killed at.
    monkeypatch.setattr("tools.corpus.units.SMALLEST_UNIT", 20_000)
    monkeypatch.setattr("tools.corpus.work.SEGMENT_BYTES", 40_000)
    if compressed:
        source = tmp_path / "in.jsonl.gz"
        source.write_bytes(gzip.compress((tmp_path / "in.jsonl").read_bytes()))
    args = ["--input", str(source), "--tokenizer", model, "--workers", "1", "--deduplicate"]
    args += ["--validation-fraction", "0.1", "--output"]
    started = time.monotonic()
    assert main([*args, str(tmp_path / "calm" / "c")]) == 0
    duration = time.monotonic() - started

    random_ = random.Random(1)
    kills = finished = 0
    while kills < KILLS:
        # Forked, so that a run starts at once; it is a process of its own and gets a real SIGKILL.
        process = multiprocessing.get_context("fork").Process(
            target=main, args=([*args, str(tmp_path / "killed" / "c")],)
        )
        process.start()
        process.join(random_.uniform(0, 0.3 * duration))
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        # What was started again after it was complete says so with 0 as well.
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            finished += 1
            assert files(tmp_path / "killed") == files(tmp_path / "calm")
            for path in (tmp_path / "killed").iterdir():
                path.unlink()
    assert main([*args, str(tmp_path / "killed" / "c")]) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "calm")
    assert len(files(tmp_path / "calm")) == 7


def test_killing_the_command_leaves_no_worker_and_a_restart_goes_on(tmp_path: Path, model: str, source: Path) -> None:
    source.write_bytes(source.read_bytes() * 4)
    args = ["--input", str(source), "--tokenizer", model, "--output"]
    assert main([*args, str(tmp_path / "calm" / "c"), "--workers", "1"]) == 0
    command = [sys.executable, "-m", "tools.preprocess", *args, str(tmp_path / "killed" / "c"), "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    work = tmp_path / "killed" / "c.work"
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        while not list(work.glob("part-*")):
            assert process.poll() is None
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        process.kill()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    kept = {path: path.stat().st_mtime_ns for path in work.glob("part-*")}
    assert kept
    again = subprocess.run([*command, "--json"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "killed") == files(tmp_path / "calm")


def test_a_worker_that_dies_is_one_clear_error_and_the_next_start_goes_on(
    tmp_path: Path, model: str, source: Path
) -> None:
    source.write_bytes(source.read_bytes() * 4)
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c" / "c"), "--workers", "2"]
    command = [sys.executable, "-m", "tools.preprocess", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("c/c.work/part-*")):
            assert process.poll() is None
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        # Workers are children of the fork server.
        workers = [child for child in children if child.ppid() != process.pid]
        workers[0].kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: a worker process died")
    assert "Traceback" not in errors
    assert main(args[:-1] + ["1"]) == 0


def test_a_changed_input_or_setting_does_not_mix_with_an_unfinished_run(
    tmp_path: Path, model: str, source: Path, capsys
) -> None:
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
    # A run that stops at its first bad record stays unfinished.
    assert main([*args, "--on-error", "stop"]) == 2
    capsys.readouterr()
    assert main([*args, "--min-chars", "5"]) == 2
    assert "unfinished run with other settings" in capsys.readouterr().err
    with source.open("ab") as file:
        file.write(b'{"text": "one more"}\n')
    assert main(args) == 2
    assert "unfinished run with other inputs" in capsys.readouterr().err
    assert main([*args, "--overwrite"]) == 0
    assert not (tmp_path / "c.work").exists()


def test_two_runs_do_not_share_an_output(tmp_path: Path, model: str, source: Path, capsys) -> None:
    import fcntl

    (tmp_path / "c.work").mkdir()
    with (tmp_path / "c.work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "c"), "--workers", "1"]
        assert main(args) == 2
    assert "another process is preprocessing" in capsys.readouterr().err


def test_what_a_killed_process_had_begun_to_publish_goes_and_that_of_others_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    begun = [f".m[1].json.{host}.{process}.writing" for host, process in (
        (socket.gethostname(), gone.pid), (socket.gethostname(), os.getppid()), ("another", gone.pid),
    )]  # fmt: skip
    for name in begun:
        (tmp_path / name).write_text("{")
    publish(tmp_path / "m[1].json", [b"{}"])
    assert {path.name for path in tmp_path.iterdir()} == {"m[1].json", *begun[1:]}
