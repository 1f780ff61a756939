"""How a process ends: with its own code, even while threads of gloo still let go of tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Two ranks end while thousands of collectives are under way on a group that outlives destroy_process_group.
# With `sys.exit(main())` at least one of the two was aborted by signal 6 in six of six trials.
BUSY = """
import sys, torch, torch.distributed as dist
from pretrain.leaving import leave_with
def main():
    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sys.kept = dist.new_group([0, 1])
    for _ in range(2000):
        dist.all_reduce(torch.ones(8), group=sys.kept, async_op=True)
    print("done")
    return 75
leave_with(main)
"""

ORDERLY = """
import atexit, threading, time
from pretrain.leaving import leave_with
def late():
    time.sleep(0.3)
    print("thread")
class Kept:
    def __del__(self):
        print("torn down")
def main():
    global kept
    kept = Kept()
    atexit.register(print, "handler")
    threading.Thread(target=late).start()
    print("main")
    {end}
leave_with(main)
"""


def start(text: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", text, *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_ranks_end_with_their_code_while_collectives_are_under_way(tmp_path: Path):
    for trial in range(3):
        ranks = [start(BUSY, str(rank), str(tmp_path / f"store-{trial}")) for rank in range(2)]
        ends = [(*rank.communicate(timeout=100), rank.returncode) for rank in ranks]
        assert [(said, code) for said, _, code in ends] == [("done\n", 75)] * 2, ends


@pytest.mark.parametrize(
    ("end", "said", "code"),
    [
        ("return 3", ["main", "thread", "handler"], 3),
        ("raise SystemExit(2)", ["main", "thread", "handler", "torn down"], 2),
        ("raise ValueError", ["main", "thread", "handler", "torn down"], 1),
    ],
)
def test_threads_and_exit_handlers_have_their_turn_and_only_a_returned_code_skips_the_tear_down(end, said, code):
    process = start(ORDERLY.replace("{end}", end))
    out, errors = process.communicate(timeout=60)
    assert (out.split("\n")[:-1], process.returncode) == (said, code)
    assert ("ValueError" in errors) == (end == "raise ValueError")
