"""A corpus of 10^11 tokens opens at once and takes no memory: nothing depends on its size."""

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
import json, resource, sys, time
from pretrain.data.corpus import open_corpus
from pretrain.data.loader import BatchLoader

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, started = peak(), time.perf_counter()
corpus = open_corpus([{"path": sys.argv[1]}, {"path": sys.argv[1], "weight": 0.5}], seq_length=4096, seed=1)
loader = BatchLoader(corpus, micro_batch_size=8, accumulation=4, dp_rank=1, dp_size=2)
batch = loader.batches(10**7)
seconds, grown = time.perf_counter() - started, peak() - before
print(json.dumps({"seconds": seconds, "grown": grown, "samples": corpus.num_samples, "shape": list(batch[0].shape)}))
"""


def write_sparse(prefix: Path) -> None:
    """200 GB of tokens and 2 GB of index that occupy a few blocks: everything but the ends is a hole."""
    with Path(f"{prefix}.bin").open("wb") as file:
        file.truncate(2 * TOKENS)
    with Path(f"{prefix}.idx").open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 8, DOCUMENTS, DOCUMENTS + 1))
        place = HEADER.size
        for dtype, entries, last in (
            ("<i4", DOCUMENTS, TOKENS // DOCUMENTS),
            ("<i8", DOCUMENTS, 2 * (TOKENS - TOKENS // DOCUMENTS)),
            ("<i8", DOCUMENTS + 1, DOCUMENTS),
        ):
            place += entries * np.dtype(dtype).itemsize
            file.seek(place - np.dtype(dtype).itemsize)
            file.write(np.array([last], dtype).tobytes())


def test_a_hundred_billion_tokens_open_in_a_second(tmp_path: Path) -> None:
    write_sparse(tmp_path / "huge")
    done = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path / "huge")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shape"] == [8, 4097]
    assert found["samples"] == 2 * ((TOKENS - 1) // 4096)
    assert found["seconds"] < 1.0
    assert found["grown"] < 300e6
