"""Ranks that come together: all of them, or a line on who is missing, different, lost or told to stop."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import load_config
from pretrain.environment import Place
from pretrain.errors import LaunchError
from pretrain.meeting import Meeting
from pretrain.meeting.lines import ranks_in_words
from pretrain.stopping import StopRequest
from tests.distributed import free_port
from tests.pretrain.attempts import write_run_file
from tests.pretrain.members import Member, start, stop

OVERWRITE = "hello.{name} = lambda *_: {value}"
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "settings": ({"overrides": ("train.steps=99",)}, "have different settings (train.steps: 14 and 99)"),
    "world": ({"WORLD_SIZE": 5}, "says WORLD_SIZE 5, rank 0 on "),
    "code": ({"early": OVERWRITE.format(name="_code", value={"pretrain/run.py": 1})}, "runs other code than rank 0 on"),
    "torch": ({"early": OVERWRITE.format(name="_version", value="'1.0'")}, "has deepspeed 1.0, rank 0 on"),
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    return write_run_file(tmp_path / "run.yaml", str(tmp_path / "corpus"), tmp_path / "run")


def ends(members: list[Member]) -> list[tuple[int, list[str], list[str]]]:
    return [member.end() for member in members]


def test_all_come_and_nobody_says_a_word(config: str) -> None:
    assert ends(start(config, 4)) == [(0, ["met", "begun"], [])] * 4


def test_who_is_missing_is_told_within_seconds_and_a_signal_ends_it_at_once(config: str) -> None:
    place = {"WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "LOCAL_RANK": 0}
    first, second = (Member(config, **place, RANK=rank) for rank in (0, 1))
    assert stop(first, "waiting: rank 2 of 3", signal.SIGINT) < 3
    code, out, (line, last) = first.end()
    assert (code, out) == (75, [])
    assert line.startswith(f"waiting: rank 2 of 3 did not come yet to 127.0.0.1:{place['MASTER_PORT']}; here: 0 on ")
    assert "unset RANK WORLD_SIZE" in line
    assert last == "SIGINT: ended while starting; nothing was trained yet"
    assert second.end()[::2] == (75, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_rank_that_finds_nobody_says_where_it_looks(config: str, number: int) -> None:
    member = Member(config, RANK=1, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_ADDR="localhost", MASTER_PORT=free_port())
    assert stop(member, "waiting", number) < 3
    code, _, (line, last) = member.end()
    assert code == 75 and line.startswith("waiting: rank 1 of 2 waits for rank 0 at localhost:")
    assert "connection refused" in line and last.startswith(signal.Signals(number).name)


@pytest.mark.parametrize(("launched", "expected"), [({}, 2), ({"SMET_LAUNCH_ID": "x"}, 1)], ids=["by hand", "launched"])
@pytest.mark.parametrize("rank", [0, 1])
def test_patience_ends(config: str, rank: int, launched: dict[str, str], expected: int) -> None:
    """What was started by hand is its user's; a machine that our launcher chose has failed, and it starts again."""
    place = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "LOCAL_RANK": 0}
    code, _, lines = Member(config, overrides=("operation.meet_within=1",), RANK=rank, **place, **launched).end()
    assert code == expected and len(lines) == 1 and lines[0].startswith("error: "), lines


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_rank_that_differs_ends_all_with_one_line(config: str, what: str) -> None:
    changes, expected = DIFFERENT[what]
    found = ends(start(config, 2, rank1=changes))
    assert [code for code, _, _ in found] == [2, 2]
    (line,) = [line for _, _, lines in found for line in lines]
    assert line.startswith("error: ") and expected in line, line


def test_a_rank_that_comes_twice_is_sent_away_and_the_run_begins(config: str) -> None:
    port = free_port()
    place = {"WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    members = [Member(config, **place, RANK=rank, LOCAL_RANK=rank) for rank in (0, 1)]
    members[0].await_text("waiting: rank 2 of 3")
    code, _, lines = Member(config, **place, RANK=1, LOCAL_RANK=1).end()
    assert code == 2 and len(lines) == 1 and "is there twice" in lines[0]
    members.append(Member(config, **place, RANK=2, LOCAL_RANK=2))
    assert [code for code, _, _ in ends(members)] == [0, 0, 0]


def test_a_rank_of_another_run_is_sent_away(config: str, tmp_path: Path) -> None:
    port = free_port()
    place = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first = Member(config, **place, RANK=0, LOCAL_RANK=0)
    other = f"train.output_dir={tmp_path / 'other'}"
    code, _, lines = Member(config, **place, overrides=(other,), RANK=1, LOCAL_RANK=1).end()
    assert code == 2 and lines[0].endswith(f"where the run in {tmp_path / 'run'} meets")
    assert Member(config, **place, RANK=1, LOCAL_RANK=1).end()[0] == first.end()[0] == 0


def test_two_ranks_never_share_a_gpu(config: str) -> None:
    place = {"LOCAL_RANK": 0, "overrides": ("train.device=auto",), "early": "hello.Path.exists = lambda _: True"}
    found = ends(start(config, 2, rank0=place, rank1=place))
    assert [code for code, _, _ in found] == [2, 2]
    assert "both have LOCAL_RANK 0, and would share a GPU" in found[0][2][0]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_rank_that_dies_ends_all_within_seconds(config: str, rank: int, when: str) -> None:
    """When it has come and another has not, and when all have."""
    waits = {f"rank{other}": {"late": "print('waits', flush=True); time.sleep(60)"} for other in range(3)}
    members = start(config, 3, **waits) if when == "late" else start(config, 4, absent=(3,))
    for member in members:
        member.await_text("waits") if when == "late" else members[0].await_text("waiting: rank 3 of 4")
    members[rank].process.kill()
    found = ends(members)
    assert found[rank][0] == -signal.SIGKILL
    others = [end for number, end in enumerate(found) if number != rank]
    assert {code for code, _, _ in others} == {1}, found
    text = f"rank {rank} on {socket.gethostname()}"
    assert [text in line and "ended while the run was starting" in line for _, _, err in others for line in err], found


def test_a_failure_of_one_rank_is_told_by_the_first_and_ends_all(config: str) -> None:
    found = ends(start(config, 3, rank2={"late": "meeting.fail(['no GPU here', 'no disk either'])"}))
    assert [code for code, _, _ in found] == [2, 2, 2]
    where = f" (rank 2 on {socket.gethostname()} (process "
    assert [line.partition(where)[0] for line in found[0][2]] == ["error: no GPU here", "error: no disk either"]
    assert not found[1][2] and not found[2][2]


def test_a_signal_to_one_rank_ends_all_even_in_calls_that_let_no_handler_run(config: str) -> None:
    """A lock that is held stands for a rendezvous in C++."""
    waits = "import threading; lock = threading.Lock(); lock.acquire(); print('waits', flush=True); lock.acquire()"
    members = start(config, 3, **{f"rank{rank}": {"late": waits} for rank in range(3)})
    for member in members:
        member.await_text("waits")
    assert stop(members[2], "waits") < 3
    found = ends(members)
    assert [code for code, _, _ in found] == [75, 75, 75]
    assert found[0][2] == ["SIGTERM: ended while starting; nothing was trained yet"] and not found[1][2]


def test_strangers_disturb_nobody(config: str) -> None:
    port = free_port()
    place = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first = Member(config, **place, RANK=0, LOCAL_RANK=0)
    open_ones = []
    for text in (
        b"GET / HTTP/1.0\r\n\r\n",
        b'{"rank": "1"}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\n",
        b"",
        b'{"stop": "x"}\n',
    ):
        for _ in range(100):
            try:
                open_ones.append(socket.create_connection(("127.0.0.1", port)))
                break
            except OSError:
                time.sleep(0.1)
        open_ones[-1].sendall(text)
    time.sleep(0.5)
    assert Member(config, **place, RANK=1, LOCAL_RANK=1).end() == (0, ["met", "begun"], [])
    assert first.end() == (0, ["met", "begun"], [])


def test_a_port_that_is_taken_is_named_with_its_holder(config: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        place = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        code, _, (line,) = Member(config, **place, CROSS_SIZE=1).end()
        assert code == 1  # of this stand-in; the program's is 2
        assert line.startswith(f"error: port {port} of ") and "is held by process " in line and "pytest" in line
        assert "such as `--master_port " in line
        wrong = Member(config, **{**place, "RANK": 1}, overrides=("operation.meet_within=6",))
        assert "what listens there is no rank 0 of a run" in wrong.end()[2][-1]


def test_torchruns_store_is_waited_for_with_a_line(config: str) -> None:
    marks = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "x"}
    place = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    member = Member(config, **place, **marks)
    assert stop(member, "waiting") < 5
    code, _, (line, _) = member.end()
    assert code == 75 and "rank 0 waits for torchrun at 127.0.0.1:" in line and "if torchrun has ended" in line


def test_under_torchrun_ranks_are_compared_when_they_have_joined(config: str) -> None:
    run = load_config(config)
    place = Place(0, 2, 0, "torchrun", "127.0.0.1", 1, store_is_hosted=True)
    meeting = Meeting(place, run, StopRequest())

    class Joined:
        def gather_objects(self, own: Any) -> list[Any]:
            return [own, {**own, "rank": 1, "settings": {**own["settings"], "train": {}}}]

    with pytest.raises(LaunchError, match="rank 1 on .* have different settings"):
        meeting.compare(Joined())  # type: ignore[arg-type]


def test_ranks_in_words() -> None:
    assert ranks_in_words([3]) == "rank 3"
    assert ranks_in_words([7, 1, 2, 3]) == "ranks 1-3, 7"
    assert ranks_in_words(list(range(0, 40, 2))).endswith("14 and 12 more groups")


def test_the_meeting_needs_no_torch() -> None:
    text = "import sys, pretrain.__main__, pretrain.meeting, pretrain.run_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run(["python", "-c", text], executable=__import__("sys").executable).returncode == 0
