"""megatron-core reads our files, and we read those its builder writes, with identical documents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.indexed import IndexedDataset
from pretrain.data.writer import IndexedWriter
from tools.corpus.verify import verify

MEGATRON = """
import json, sys
import numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
ours, theirs, dtype, documents = sys.argv[1], sys.argv[2], getattr(numpy, sys.argv[3]), json.loads(sys.argv[4])
data = IndexedDataset(ours)
bounds = data.document_indices.tolist()
read = [[[int(t) for t in data[s]] for s in range(a, b)] for a, b in zip(bounds, bounds[1:])]
builder = IndexedDatasetBuilder(theirs + ".bin", dtype=dtype)
for sequences in documents:
    for sequence in sequences:
        builder.add_item(torch.tensor(sequence))
    builder.end_document()
builder.finalize(theirs + ".idx")
print(json.dumps({"documents": read, "dtype": numpy.dtype(data.index.dtype).name}))
"""

DOCUMENTS = [[[5, 1, 2]], [[7], [8, 9, 2]], [[65535, 0, 3]], [list(range(300))]]


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_megatron_and_we_read_each_other(tmp_path: Path, dtype: str) -> None:
    with IndexedWriter(tmp_path / "ours", np.dtype(dtype)) as writer:
        for sequences in DOCUMENTS:
            flat = np.array([token for sequence in sequences for token in sequence])
            writer.add_sequences(flat, np.array([len(s) for s in sequences]), np.array([len(sequences)]))
    args = [str(tmp_path / "ours"), str(tmp_path / "theirs"), dtype, json.dumps(DOCUMENTS)]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", MEGATRON, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"documents": DOCUMENTS, "dtype": dtype}

    theirs = IndexedDataset(tmp_path / "theirs")
    assert theirs.dtype == dtype
    read = [theirs.document(number).tolist() for number in range(theirs.num_documents)]
    assert read == [[token for sequence in sequences for token in sequence] for sequences in DOCUMENTS]
    assert verify(str(tmp_path / "theirs"), None, None) == []
    # Not only the same documents: the same bytes.
    for suffix in ("bin", "idx"):
        ours, other = (Path(f"{tmp_path}/{name}.{suffix}").read_bytes() for name in ("ours", "theirs"))
        assert ours == other
