"""No flipped byte of an index is trained on: refused at open, or at the next step, or at the end."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from pretrain.data import soundness
from pretrain.data.corpus import open_corpus
from pretrain.data.indexed import HEADER, IndexedDataset, index_path
from pretrain.data.loader import BatchLoader
from pretrain.data.packed import TokenCorpus
from pretrain.data.soundness import IndexCheck
from pretrain.data.writer import IndexedWriter
from pretrain.errors import DataError
from tests.data.corpora import make_corpus
from tools.corpus.merge import merge


def flipped(path: Path, position: int, bit: int) -> bytes:
    """Write ``path`` with one bit changed; returns the old content."""
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    return content


def test_every_byte_of_an_index_with_a_manifest_is_looked_at_before_it_opens(tmp_path: Path) -> None:
    prefix = make_corpus(tmp_path / "corpus", tokens=70)
    TokenCorpus(prefix, 8, 0)
    path = index_path(prefix)
    for position in range(path.stat().st_size):
        content = flipped(path, position, position % 8)
        with pytest.raises(DataError) as error:
            TokenCorpus(prefix, 8, 0)
        assert "\n" not in str(error.value) and "corpus" in str(error.value)
        path.write_bytes(content)
    TokenCorpus(prefix, 8, 0)


def test_without_a_manifest_lengths_offsets_and_order_have_to_agree(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "corpus", np.dtype(np.uint16)) as writer:
        for start in range(0, 70, 10):
            writer.add(np.arange(start, start + 10))
    path, documents = index_path(tmp_path / "corpus"), 7
    whole = [TokenCorpus(tmp_path / "corpus", 8, 0).sample(n).tolist() for n in range(8)]
    boundaries = HEADER.size + 12 * documents
    unseen = 0
    for position in range(path.stat().st_size):
        for bit in range(8):
            content = flipped(path, position, bit)
            try:
                corpus = TokenCorpus(tmp_path / "corpus", 8, 0)
            except DataError as error:
                assert "\n" not in str(error)
            else:
                unseen += 1
                assert position >= boundaries, "which documents a sequence belongs to, in order, cannot be known"
                assert [corpus.sample(n).tolist() for n in range(8)] == whole
            path.write_bytes(content)
    assert 0 < unseen < 20


@pytest.mark.parametrize("place", ["length", "offset"])
def test_a_negative_entry_is_named(tmp_path: Path, place: str) -> None:
    prefix = make_corpus(tmp_path / "corpus", tokens=70)
    Path(f"{prefix}.manifest.json").unlink()
    flipped(index_path(prefix), HEADER.size + (4 * 3 + 3 if place == "length" else 4 * 7 + 8 * 3 + 7), 7)
    with pytest.raises(DataError, match=r"corpus\.idx: sequence 3 starts at byte .*copy the corpus again"):
        TokenCorpus(prefix, 8, 0)


def test_a_large_index_is_looked_at_behind_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, look = threading.Event(), soundness._problem
    monkeypatch.setattr(soundness, "AT_ONCE", 0)
    monkeypatch.setattr(soundness, "_problem", lambda *given: look(*given) if opened.wait(60) else "never opened")
    prefix = make_corpus(tmp_path / "corpus", tokens=70)
    flipped(index_path(prefix), HEADER.size + 4 * 7 + 8 * 7 + 8 * 2, 0)  # a boundary, in order still
    spec = [{"blend": [{"path": prefix}], "until_tokens": 8}, {"blend": [{"path": prefix}]}]
    corpus = open_corpus(spec, 8, 0)
    opened.set()
    with pytest.raises(DataError, match=r"corpus\.idx was changed: its sha256 is"):
        corpus.settle()
    with pytest.raises(DataError, match="was changed"):
        BatchLoader(corpus, micro_batch_size=1, accumulation=1, dp_rank=0, dp_size=1).batches(0)
    unchecked = BatchLoader(open_corpus(spec, 8, 0, check=False), 1, 1, 0, 1)
    assert unchecked.batches(0)[0].shape == (1, 9), "another process of the host looks"
    unchecked.close()


def test_a_document_is_only_given_where_its_neighbours_agree(tmp_path: Path) -> None:
    prefix = make_corpus(tmp_path / "corpus", tokens=70)
    path = index_path(prefix)
    whole = [IndexedDataset(prefix).document(n).tolist() for n in range(7)]
    for position in range(HEADER.size, HEADER.size + 12 * 7):
        content = flipped(path, position, position % 8)
        try:
            data = IndexedDataset(prefix)
            for number in range(7):
                try:
                    assert data.document(number).tolist() == whole[number]
                except DataError as error:
                    assert f"it says of document {number} what cannot be" in str(error)
        except DataError as error:
            assert "corpus" in str(error)
        path.write_bytes(content)


def test_merging_does_not_make_damage_sound(tmp_path: Path) -> None:
    prefix = make_corpus(tmp_path / "corpus", tokens=70)
    flipped(index_path(prefix), HEADER.size + 4 * 7 + 8 * 7 + 8 * 2, 0)
    with pytest.raises(DataError, match="was changed"):
        merge([prefix], str(tmp_path / "merged"), 0.0, False, False)
    assert not list(tmp_path.glob("merged*"))


def test_an_index_that_cannot_be_read_is_said_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "AT_ONCE", 0)
    data = IndexedDataset(make_corpus(tmp_path / "corpus", tokens=70))

    def gone(*_: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(soundness, "_problem", gone)
    with pytest.raises(DataError, match=r"corpus\.idx cannot be read: Input/output error"):
        IndexCheck(data, None).require(wait=True)


def test_one_corpus_under_two_spellings_gives_no_sample_twice(tmp_path: Path) -> None:
    prefix = make_corpus(tmp_path / "corpus", tokens=200)
    (tmp_path / "link").symlink_to(tmp_path)
    plain = open_corpus([{"path": prefix}, {"path": prefix}], 8, 0)
    for spelled in (f"{tmp_path}/./corpus", f"{tmp_path}/link/corpus"):
        other = open_corpus([{"path": prefix}, {"path": spelled}], 8, 0)
        assert [other.sample(n).tolist() for n in range(40)] == [plain.sample(n).tolist() for n in range(40)]
        assert other.fingerprint == plain.fingerprint
