"""What the page's server answers, to whom, and that it only reads; without a browser."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pages import commands
from tests.tools.texts import ROOT
from tests.tools.watch.folders import add, beat, make_run, record
from tests.tools.watch.serving import Watch
from tools.watch.cli import main

STATIC = ROOT / "tools" / "watch" / "static"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one", 120, 200)


@pytest.fixture(scope="module")
def watch(folder: Path) -> Iterator[Watch]:
    found = Watch(folder)
    yield found
    found.process.kill()


def everything(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_news_are_what_is_new_and_nothing_is_written(watch: Watch, folder: Path) -> None:
    before = everything(folder)
    (run,) = watch.news()["runs"]
    metrics = run["metrics"]
    assert metrics["x"] == list(range(1, 121)) and metrics["size"] == 1 and metrics["anew"]
    assert metrics["columns"]["loss"]["mid"][4] == float(f"{record(5)['loss']:.6g}")
    assert metrics["validation_loss"] == [[100.0, pytest.approx(2.6 + 6 * 2.718281828 ** (-100 / 120))]]
    assert [row["step"] for row in run["topology"]["rows"]] == [40, 80, 120]
    assert run["topology"]["newest"][1] == ["model.layers.0.mlp.up_proj", 0.25, 66]
    assert run["status"]["content"]["state"] == "running" and len(run["status"]["content"]["ranks"]) == 2
    assert everything(folder) == before
    tokens = {name: section["token"] for name, section in run.items() if name not in ("name", "more")}
    (again,) = watch.news({"0": tokens})["runs"]
    assert again.keys() <= {"name", "more", "status"}
    add(folder / "metrics.jsonl", record(121))
    time.sleep(0.5)
    (more,) = watch.news({"0": tokens})["runs"]
    assert more["metrics"]["x"] == [121] and more["metrics"]["first"] == 120 and not more["metrics"]["anew"]


def test_only_this_machine_is_answered_by_its_own_names(watch: Watch) -> None:
    port = watch.url.split(":")[2].rstrip("/")
    for name in (f"127.0.0.1:{port}", "localhost", "localhost:9999", "[::1]:8000"):
        assert watch.ask("/", Host=name)[0] == 200, name
    for name in (f"evil.example:{port}", "evil.example", "127.0.0.1.evil.example", "", "localhost.", f"[::2]:{port}"):
        status, _, content = watch.ask("/news", Host=name)
        assert status == 403 and content == b"this page is for 127.0.0.1 and localhost alone\n", name
    with socket.socket() as elsewhere, pytest.raises(OSError):
        elsewhere.settimeout(2)
        elsewhere.connect(("127.0.0.2", int(port)))


@pytest.mark.parametrize("method", ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"))
def test_only_get_is_answered(watch: Watch, method: str) -> None:
    status, headers, _ = watch.ask("/news", method)
    assert status == 405 and headers["Allow"] == "GET"


@pytest.mark.parametrize(
    "path",
    (
        "/../cli.py", "/%2e%2e/cli.py", "/vendor/../../cli.py", "//etc/passwd", "/etc/passwd", "/static/main.js",
        "/main.js/", "/vendor/", "/vendor/README.md", "/.", "/window/x", "/news/../../x",
    ),
)  # fmt: skip
def test_no_path_leads_into_the_file_system(watch: Watch, path: str) -> None:
    assert watch.ask(path)[0] == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/news?have=[]", 400), ("/news?have={", 400), ("/news?have=" + "[" * 5000, 400), ("/window?run=0", 400),
        ("/window?run=0&from=nan&to=4", 400), ("/window?run=0&from=1e999&to=4", 400),
        ("/window?run=1&from=1&to=4", 404), ("/window?run=-1&from=1&to=4", 404),
        ("/window?run=%D9%A1&from=1&to=4", 404), ("/mask?run=../x", 404),
        ("/window?run=0&from=-5&to=1e299", 200), ("/mask?run=0&layer=../../x", 200),
        ('/news?have={"0":{"metrics":[0,1,-4,1],"events":[0,9],"topology":"x","status":[]}}', 200),
        ('/news?have={"0":{"metrics":[0,1,1e400,1]}}', 200),
    ],
)  # fmt: skip
def test_odd_questions_get_one_line_or_what_there_is(watch: Watch, path: str, status: int) -> None:
    answer, _, content = watch.ask(path)
    assert answer == status, content
    if status == 200:
        json.loads(content)
    else:
        assert content.count(b"\n") == 1 and len(content) < 200


def test_an_address_that_is_none_is_refused_in_a_line(watch: Watch) -> None:
    assert watch.ask("http://[", Host="localhost")[::2] == (400, b"this is no address of a page\n")


def test_every_answer_keeps_scripts_out(watch: Watch) -> None:
    for path in ("/", "/news", "/main.js", "/nothing"):
        policy = watch.ask(path)[1]["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert re.findall(r"script-src ([^;]*)", policy) == ["'self'"]
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=\"/)", page) and " on" not in re.sub(r">[^<]*<", "><", page)
    for file in [*STATIC.glob("*.js"), STATIC / "index.html", *STATIC.glob("*.css")]:
        text = file.read_text()
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text, file
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), f"{file} names something outside"


def test_what_is_vendored_is_what_its_page_says() -> None:
    readme = (STATIC / "vendor" / "README.md").read_text()
    told = dict(re.findall(r"\| `(\S*uPlot\S*)` \| `\S+` \| `([0-9a-f]{64})` \|", readme))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (STATIC / "vendor").glob("*uPlot*")}
    assert told == found and len(told) == 3
    page = (STATIC / "index.html").read_text()
    assert all(name in page for name in told if "LICENSE" not in name)


def test_the_page_asks_for_all_its_scripts_at_once() -> None:
    asked = re.findall(
        r'<(?:link rel="modulepreload" href|script src)="/(\w+\.js)"', (STATIC / "index.html").read_text()
    )
    assert sorted(asked) == sorted(path.name for path in STATIC.glob("*.js"))


def test_scripts_are_small_files() -> None:
    lengths = {path.name: path.read_text().count("\n") for path in STATIC.glob("*.*")}
    assert max(lengths.values()) <= 400 and len(lengths) > 10


def test_the_start_says_how_to_get_there_and_ctrl_c_ends_it_in_one_line(tmp_path: Path) -> None:
    later = tmp_path / "later"
    watch = Watch(later)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", watch.url)
    port = watch.url.split(":")[2].rstrip("/")
    assert watch.told["ssh"].startswith(f"ssh -N -L {port}:127.0.0.1:{port} ") and watch.told["waits"] == [str(later)]
    (run,) = watch.news()["runs"]
    assert run["status"]["content"]["state"] == "waiting" and run["problems"]["content"] == []
    make_run(later, 3, 10, ranks=1)
    time.sleep(2.1)
    (run,) = watch.news()["runs"]
    assert run["status"]["content"]["state"] == "running" and run["metrics"]["x"] == [1, 2, 3]
    assert watch.end() == (0, "watch ended; the runs go on\n", "")


def test_commands_of_the_page_start(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands("docs/watch.md")
    assert len(found) >= 3
    monkeypatch.setattr("tools.watch.server.Server.serve_forever", lambda *_, **__: None)
    monkeypatch.setattr("os.nice", lambda _: 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("quickstart", "sparse", "dense"):
        (tmp_path / "runs" / name).symlink_to(folder)
    for command in found:
        words = shlex.split(command)
        assert words[:2] == ["smet", "watch"] and main(words[2:]) == 0, command


def test_lines_for_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:  # no signal: an earlier test may have its own handler
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.watch.server.Server.serve_forever", interrupted)
    monkeypatch.setattr("os.nice", lambda _: 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main([str(tmp_path / "run"), "--no-browser", "--port", "0"]) == 0
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"watching \S+/run at http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)", first)
    assert second.startswith("from another machine: ssh -N -L ")
    assert third == f"{tmp_path / 'run'} holds no run yet: waiting for it" and last == "watch ended; the runs go on"


def test_what_can_be_no_run_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    make_run(tmp_path / "runs" / "a", 1, 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases: list[tuple[list[str], str]] = [
            ([str(tmp_path / "file")], "is a file, expected a run folder"),
            (
                [str(tmp_path / "runs")],
                f"holds some; give one or more of them: {tmp_path}/runs/a",
            ),
            ([str(tmp_path / "runs/a"), "--port", str(port)], f"--port {port} cannot be had (Address already in use)"),
        ]
        for arguments, said in cases:
            assert main([*arguments, "--no-browser"]) == 2
            error = capsys.readouterr().err
            assert said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.jsonl", b'nothing\n[1]\n{"loss": 1}\n{"step": "x"}\n\xff\xfe\n{"step":1}\n', "5 lines of metrics"),
        ("metrics.jsonl", b'{"step": 5}\n{"step": 4, "loss": 2}\n', "1 records of metrics.jsonl do not follow"),
        ("metrics.jsonl", b'{"step": 1, "loss": NaN, "lr": Infinity, "grad_norm": "Infinity"}\n', ""),
        ("metrics.jsonl", b'{"step": 1, "loss": 1e999, "lr": {"a": 1}, "grad_norm": [[]], "tokens": true}\n', ""),
        ("topology.jsonl", b'{"step": {}, "density": [], "moved": 4}\n{"density": {"a": "b"}}\n', ""),
        ("events.jsonl", b'{"time": "never", "kind": ["x"], "step": null}\n{"time": 1e300, "kind": "\\u202e"}\n', ""),
        ("samples.jsonl", b'{"step": 1}\n{"step": "a", "prompt": 4, "text": "\\u0000"}\n', ""),
        ("config.yaml", b"train: [1\n", "config.yaml"),
        ("config.yaml", b"train: {steps: many}\n", "has no train.steps"),
        ("memory.json", b"[]", "memory.json holds JSON, but a list"),
        ("memory.json", b'{"measured_per_rank": 4}', "memory of one is damaged"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_counted_and_ends_nothing(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    from tools.watch.runs import RunView

    folder = make_run(tmp_path / "one", 4, 10)
    (folder / file).write_bytes(content)
    run = RunView(folder, "one")
    news = run.news({})
    json.dumps(news, allow_nan=False)
    problems = "\n".join(news["problems"]["content"])
    assert said in problems if said else problems == ""
    if file != "metrics.jsonl":
        assert news["metrics"]["rows"] == 4


def test_pipes_and_links_keep_nobody(tmp_path: Path) -> None:
    import os

    from tools.watch.runs import RunView

    folder = make_run(tmp_path / "one", 4, 10)
    (folder / "events.jsonl").unlink()
    os.mkfifo(folder / "events.jsonl")
    (folder / "samples.jsonl").mkdir()
    found: list[Any] = RunView(folder, "one").news({})["problems"]["content"]
    assert len(found) == 2 and "not a regular file" in found[0]


def test_checkpoints_are_told_whole_or_damaged(tmp_path: Path) -> None:
    from pretrain.checkpoint.manifest import make_manifest, to_text
    from tools.watch.checkpoints import Checkpoints

    for step in (10, 20, 30):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        files = {".metadata": b"m" * step, "state.json": b"{}"}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        entries = {name: {"bytes": len(content), "blake2b": "0" * 32} for name, content in files.items()}
        (folder / "manifest.json").write_text(to_text(make_manifest(step, {}, {}, entries)))
    (tmp_path / ".tmp-step-00000040").mkdir()
    checkpoints = Checkpoints(tmp_path)
    assert [row["problem"] for row in checkpoints.found()["rows"]] == [None, None, None]
    (tmp_path / "step-00000010" / "manifest.json").unlink()
    (tmp_path / "step-00000030" / ".metadata").write_bytes(b"m")
    found = Checkpoints(tmp_path).found()
    assert found["all"] == 3 and found["writing"] == 40
    assert [row["step"] for row in found["rows"]] == [10, 20, 30]
    first, second, third = (row["problem"] for row in found["rows"])
    assert "manifest.json is missing" in first and second is None
    assert third == "1 of 2 files are missing or cut off: .metadata"


@pytest.mark.parametrize("error", [OverflowError("too large"), ZeroDivisionError("by zero"), KeyError("ages")])
def test_a_checkpoint_that_cannot_be_drawn_is_a_line_on_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from tools.watch.runs import RunView
    from tools.watch.server import Server

    def fail(*_: Any) -> None:
        raise error

    with Server(0, [RunView(folder, "one")]) as server:
        monkeypatch.setattr("tools.watch.picture.Pictures.of", fail)
        found = server.mask({"run": "0"})
    assert found == {"problem": f"the checkpoint cannot be shown: {type(error).__name__}: {error}"}


def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    from tools.watch.runs import RunView

    folder = make_run(tmp_path / "one", 4, 10, ranks=4)
    beat(folder, 2, 3, alive=time.time() - 90, moved=time.time() - 95)
    status = RunView(folder, "one").news({})["status"]["content"]
    assert status["laggard"] == 2 and status["phases"] == ["training"] and status["hosts"] == ["node-00"]
