"""The indexed format: round trips, and one clear error for every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pretrain.data.indexed import HEADER, IndexedDataset, index_path, token_dtype, tokens_path
from pretrain.data.writer import IndexedWriter
from pretrain.errors import DataError

DOCUMENTS = [[5, 1, 2], [7], [], [65535, 0], list(range(300))]


def write(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> Path:
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        for document in documents:
            writer.add(np.array(document, dtype=np.int64))
    return prefix


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_documents_come_back_as_written(tmp_path: Path, dtype: type) -> None:
    data = IndexedDataset(write(tmp_path / "corpus", DOCUMENTS, dtype))
    assert data.dtype == dtype
    assert data.num_documents == len(DOCUMENTS)
    assert [data.document(i).tolist() for i in range(data.num_documents)] == DOCUMENTS
    flat = [token for document in DOCUMENTS for token in document]
    assert data.num_tokens == len(flat)
    assert data.tokens(2, 5).tolist() == flat[2:7]


def test_documents_of_several_sequences_stay_whole(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "corpus", np.dtype(np.int32)) as writer:
        writer.add_sequences(np.arange(6), np.array([1, 2, 3]), np.array([2, 3]))
        writer.add_sequences(np.arange(4), np.array([4]), np.array([1]))
    data = IndexedDataset(tmp_path / "corpus")
    assert [data.document(i).tolist() for i in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 2, 3]]
    assert data.num_sequences == 4


def test_index_longer_than_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.data.writer.CHUNK", 7)
    documents = [[i] * (i % 5) for i in range(50)] + [[1]]
    data = IndexedDataset(write(tmp_path / "corpus", documents))
    assert [data.document(i).tolist() for i in range(data.num_documents)] == documents


def test_token_dtype_follows_the_vocabulary() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.int32


def test_a_token_that_does_not_fit_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="65536"):
        write(tmp_path / "corpus", [[1], [65536]])
    assert list(tmp_path.iterdir()) == []


def truncate_bin(prefix: Path) -> None:
    tokens_path(prefix).write_bytes(tokens_path(prefix).read_bytes()[:-1])


def lengthen_bin(prefix: Path) -> None:
    tokens_path(prefix).write_bytes(tokens_path(prefix).read_bytes() + b"xx")


def truncate_idx(prefix: Path) -> None:
    index_path(prefix).write_bytes(index_path(prefix).read_bytes()[:-3])


def cut_header(prefix: Path) -> None:
    index_path(prefix).write_bytes(index_path(prefix).read_bytes()[:20])


def foreign_idx(prefix: Path) -> None:
    index_path(prefix).write_bytes(b"PK\x03\x04" + bytes(100))


def empty_idx(prefix: Path) -> None:
    index_path(prefix).write_bytes(b"")


def other_version(prefix: Path) -> None:
    raw = bytearray(index_path(prefix).read_bytes())
    raw[9] = 2
    index_path(prefix).write_bytes(bytes(raw))


def floating_dtype(prefix: Path) -> None:
    raw = bytearray(index_path(prefix).read_bytes())
    raw[17] = 6
    index_path(prefix).write_bytes(bytes(raw))


def bad_boundaries(prefix: Path) -> None:
    raw = bytearray(index_path(prefix).read_bytes())
    raw[-8] ^= 1
    index_path(prefix).write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate_bin, r"\.bin is truncated: 611 bytes, expected 612"),
        (lengthen_bin, r"\.bin is too long: 614 bytes, expected 612"),
        (truncate_idx, r"\.idx is truncated: 139 bytes, expected 142"),
        (cut_header, r"\.idx is truncated: 20 bytes"),
        (foreign_idx, r"\.idx is not an index"),
        (empty_idx, r"\.idx is not an index"),
        (other_version, r"format version 2, expected 1"),
        (floating_dtype, r"dtype code 6"),
        (bad_boundaries, r"boundaries do not run from 0 to 5"),
        (lambda prefix: index_path(prefix).unlink(), r"\.idx does not exist"),
        (lambda prefix: tokens_path(prefix).unlink(), r"\.bin does not exist"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, said: str) -> None:
    prefix = write(tmp_path / "corpus", DOCUMENTS)
    damage(prefix)
    with pytest.raises(DataError, match=said) as error:
        IndexedDataset(prefix)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("documents", [[], [[]]])
def test_an_empty_corpus_is_refused(tmp_path: Path, documents: list[list[int]]) -> None:
    with pytest.raises(DataError, match="holds no tokens"):
        IndexedDataset(write(tmp_path / "corpus", documents))


def test_header_is_the_published_layout() -> None:
    assert HEADER.size == 34
