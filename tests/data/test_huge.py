"""A corpus of 10^11 tokens opens at once and takes no memory; what depends on its size happens behind the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from pretrain.data.indexed import HEADER, MAGIC

TOKENS = 10**11
DOCUMENTS = 10**8

OPEN = """
import json, resource, sys
from pretrain.data.corpus import open_corpus
from pretrain.data.loader import BatchLoader
from pretrain.errors import DataError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def faults():  # of this thread: the pages that the run waits for; what time they take depends on who else computes
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_minflt + used.ru_majflt

before, started = peak(), faults()
corpus = open_corpus([{"path": sys.argv[1]}, {"path": sys.argv[1], "weight": 0.5}], seq_length=4096, seed=1)
loader = BatchLoader(corpus, micro_batch_size=8, accumulation=4, dp_rank=1, dp_size=2)
batch = loader.batches(10**7)
pages = faults() - started
try:
    corpus.settle()
    said = ""
except DataError as error:
    said = str(error)
grown = peak() - before
found = {"pages": pages, "grown": grown, "samples": corpus.num_samples, "shape": list(batch[0].shape)}
print(json.dumps({**found, "said": said}))
"""


LONGEST = 2**31 - 1


def write_sparse(prefix: Path) -> None:
    """200 GB of tokens and 2 GB of index that occupy a few blocks: all but the last sequences are empty, and holes."""
    full = -(-TOKENS // LONGEST)
    lengths = np.full(full, LONGEST, np.int64)
    lengths[-1] = TOKENS - (full - 1) * LONGEST
    with Path(f"{prefix}.bin").open("wb") as file:
        file.truncate(2 * TOKENS)
    with Path(f"{prefix}.idx").open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 8, DOCUMENTS, DOCUMENTS + 1))
        place = HEADER.size
        for entries, ends in (
            (DOCUMENTS, lengths.astype("<i4")),
            (DOCUMENTS, (2 * (np.cumsum(lengths) - lengths)).astype("<i8")),
            (DOCUMENTS + 1, np.array([DOCUMENTS], "<i8")),
        ):
            place += entries * ends.dtype.itemsize
            file.seek(place - ends.nbytes)
            file.write(ends.tobytes())


def opened(prefix: Path) -> str:
    """Open it, draw a batch, and return what the check of its index says in the end."""
    done = subprocess.run([sys.executable, "-c", OPEN, str(prefix)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shape"] == [8, 4097]
    assert found["samples"] == 2 * ((TOKENS - 1) // 4096)
    assert found["pages"] < 4000  # some 400; the check behind the run, which reads all of the index, takes 50,000
    assert found["grown"] < 300e6
    return str(found["said"])


def test_a_hundred_billion_tokens_open_without_being_read_and_damage_is_found_behind(tmp_path: Path) -> None:
    write_sparse(tmp_path / "huge")
    assert opened(tmp_path / "huge") == ""
    with (tmp_path / "huge.idx").open("r+b") as file:
        file.seek(HEADER.size + 4 * (DOCUMENTS // 3) + 3)
        file.write(b"\x80")  # one flipped bit: a negative length
    said = opened(tmp_path / "huge")
    assert f"huge.idx: sequence {DOCUMENTS // 3} starts at byte 0 with -2147483648 tokens" in said
