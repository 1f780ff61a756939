"""tools.dataset: verify finds any changed byte; merge, split and inspect say what preprocessing says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.indexed import IndexedDataset
from pretrain.data.manifest import manifest_path
from pretrain.data.writer import IndexedWriter
from tests.tools.texts import DOCUMENTS, make_documents, write_jsonl
from tools import dataset, preprocess
from tools.corpus.verify import verify


def make(folder: Path, model: str, documents: list[str], *options: str) -> str:
    """A corpus in ``folder``."""
    folder.mkdir(exist_ok=True)
    source = write_jsonl(folder / "in.jsonl", documents)
    args = ["--input", str(source), "--tokenizer", model, "--output", str(folder / "c"), "--workers", "1"]
    assert preprocess.main([*args, *options]) == 0
    return str(folder / "c")


@pytest.fixture
def corpus(tmp_path: Path, model: str) -> str:
    return make(tmp_path / "whole", model, DOCUMENTS)


def contents(prefix: str | Path) -> list[bytes]:
    return [Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx", "manifest.json")]


def test_verify_finds_any_single_changed_byte(tmp_path: Path, model: str) -> None:
    prefix = make(tmp_path / "small", model, DOCUMENTS[:8])
    assert verify(prefix, None, None) == []
    for suffix in ("bin", "idx", "manifest.json"):
        path = Path(f"{prefix}.{suffix}")
        sound = path.read_bytes()
        for place in range(len(sound)):
            for flip in (0x01, 0x80):
                changed = bytearray(sound)
                changed[place] ^= flip
                path.write_bytes(bytes(changed))
                assert verify(prefix, None, None), f"byte {place} of {suffix}"
        path.write_bytes(sound)
    assert verify(prefix, None, None) == []


def write_raw(prefix: Path, documents: list[list[int]]) -> str:
    with IndexedWriter(prefix, np.dtype(np.int32)) as writer:
        for document in documents:
            writer.add(np.array(document))
    return str(prefix)


def test_verify_without_a_manifest_checks_what_it_is_told(tmp_path: Path) -> None:
    prefix = write_raw(tmp_path / "c", [[5, 9, 2], [7, 2], [8, 1]])
    assert verify(prefix, None, None) == []
    assert verify(prefix, 10, None) == []
    assert "token 1 is 9, expected an id from 0 to 8" in verify(prefix, 9, None)[0]
    assert "document 2 ends with token 1, expected the end token 2" in verify(prefix, None, 2)[0]
    assert "token 0 is -5" in verify(write_raw(tmp_path / "d", [[-5]]), None, None)[0]


def test_a_corpus_by_one_of_its_files_is_told_its_name(corpus: str, capsys) -> None:
    assert dataset.main(["verify", f"{corpus}.idx"]) == 2
    assert f"{corpus}.idx.idx, and this is a file of the corpus {corpus}: leave out .idx" in capsys.readouterr().err


def test_verify_names_a_wrong_offset(tmp_path: Path) -> None:
    prefix = write_raw(tmp_path / "c", [[5, 9, 2], [7, 2], [8, 1]])
    index = Path(f"{prefix}.idx")
    raw = bytearray(index.read_bytes())
    raw[34 + 3 * 4 + 8] += 4
    index.write_bytes(bytes(raw))
    assert "sequence 1 starts at byte 16 with 2 tokens, expected byte 12" in verify(prefix, None, None)[0]


def test_verify_command(tmp_path: Path, corpus: str, capsys) -> None:
    assert dataset.main(["verify", corpus, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sound": [corpus]}
    assert dataset.main(["verify", f"{tmp_path}/nothing"]) == 2
    assert "does not exist" in capsys.readouterr().err
    Path(f"{corpus}.bin").write_bytes(Path(f"{corpus}.bin").read_bytes()[:-2])
    assert dataset.main(["verify", corpus]) == 2
    assert "is truncated" in capsys.readouterr().err


@pytest.mark.parametrize("shards", [1, 3, 5])
def test_merged_shards_equal_one_run(tmp_path: Path, model: str, shards: int, monkeypatch) -> None:
    monkeypatch.setattr("tools.corpus.units.SMALLEST_UNIT", 2000)
    whole = make(tmp_path / "whole", model, DOCUMENTS)
    source = tmp_path / "whole" / "in.jsonl"
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "s"), "--workers", "1"]
    for number in range(shards):
        assert preprocess.main([*args, "--shard", f"{number}/{shards}"]) == 0
    prefixes = [str(tmp_path / f"s-{number:05d}-of-{shards:05d}") for number in range(shards)]
    assert dataset.main(["merge", *prefixes, "--output", str(tmp_path / "merged")]) == 0
    assert contents(tmp_path / "merged") == contents(whole)
    assert sum(IndexedDataset(prefix).num_documents > 0 for prefix in prefixes) == shards


def test_more_shards_than_work_leave_empty_ones_that_merge(tmp_path: Path, model: str, corpus: str) -> None:
    source = Path(corpus).parent / "in.jsonl"
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "s"), "--workers", "1"]
    for number in range(3):
        assert preprocess.main([*args, "--shard", f"{number}/3"]) == 0
        # Empty or not, a shard that is there is not made twice, and verifies.
        assert preprocess.main([*args, "--shard", f"{number}/3"]) == 0
    prefixes = [str(tmp_path / f"s-{number:05d}-of-00003") for number in range(3)]
    assert dataset.main(["verify", *prefixes]) == 0
    assert dataset.main(["merge", *prefixes, "--output", str(tmp_path / "merged")]) == 0
    assert contents(tmp_path / "merged") == contents(corpus)


def test_split_equals_the_split_of_preprocessing(tmp_path: Path, model: str, corpus: str) -> None:
    split = make(tmp_path / "split", model, DOCUMENTS, "--validation-fraction", "0.25")
    args = ["split", corpus, "--output", str(tmp_path / "c"), "--validation-fraction", "0.25"]
    assert dataset.main(args) == 0
    for name in ("train", "validation"):
        assert contents(f"{tmp_path}/c_{name}")[:2] == contents(f"{split}_{name}")[:2]
    assert dataset.main(args) == 2


def test_duplicates_across_corpora_go_and_the_first_stays(tmp_path: Path, model: str) -> None:
    documents = make_documents(30, seed=3)
    a = make(tmp_path / "a", model, [*documents[:20], *documents[:5]])
    b = make(tmp_path / "b", model, documents[10:])
    assert dataset.main(["merge", a, b, "--output", str(tmp_path / "m"), "--deduplicate"]) == 0
    one = make(tmp_path / "one", model, documents)
    assert contents(tmp_path / "m")[:2] == contents(one)[:2]
    again = make(tmp_path / "again", model, [*documents, *documents[::-1]], "--deduplicate")
    assert contents(again)[:2] == contents(one)[:2]


def test_merging_keeps_documents_of_several_sequences(tmp_path: Path) -> None:
    for name in "ab":
        with IndexedWriter(tmp_path / name, np.dtype(np.uint16)) as writer:
            writer.add_sequences(np.arange(6), np.array([1, 2, 3]), np.array([2, 3]))
            writer.add_sequences(np.arange(6, 10), np.array([0, 4]), np.array([2, 2]))
    assert dataset.main(["merge", f"{tmp_path}/a", f"{tmp_path}/b", "--output", f"{tmp_path}/m"]) == 0
    data = IndexedDataset(tmp_path / "m")
    once = [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9], []]
    assert [data.document(n).tolist() for n in range(data.num_documents)] == once * 2
    assert data.num_sequences == 10
    assert dataset.main(["merge", f"{tmp_path}/a", f"{tmp_path}/b", "--output", f"{tmp_path}/d", "--deduplicate"]) == 0
    data = IndexedDataset(tmp_path / "d")
    assert [data.document(n).tolist() for n in range(data.num_documents)] == once


def test_merge_refuses_what_does_not_fit(tmp_path: Path, corpus: str, capsys) -> None:
    raw = write_raw(tmp_path / "raw", [[1, 2]])
    for inputs, said in [
        ([corpus, raw], "token dtypes uint16 and int32"),
        ([corpus, f"{tmp_path}/nothing"], "does not exist"),
    ]:
        assert dataset.main(["merge", *inputs, "--output", str(tmp_path / "m")]) == 2
        assert said in capsys.readouterr().err
    assert dataset.main(["merge", corpus, "--output", corpus, "--overwrite"]) == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert not list(tmp_path.glob("m*")) and not list(tmp_path.glob(".m*"))


def test_merge_refuses_another_tokenizer(tmp_path: Path, corpus: str, capsys) -> None:
    from tests.data.corpora import make_corpus

    other = make_corpus(tmp_path / "other", 100)
    assert dataset.main(["merge", corpus, other, "--output", str(tmp_path / "m")]) == 2
    assert "were made with tokenizers" in capsys.readouterr().err
    manifest_path(other).unlink()
    assert dataset.main(["merge", corpus, other, "--output", str(tmp_path / "m")]) == 2
    assert "has no manifest" in capsys.readouterr().err


def test_inspect_shows_counts_documents_and_samples(corpus: str, model: str, capsys) -> None:
    def shown(*args: str) -> dict:
        assert dataset.main(["inspect", corpus, "--json", *args]) == 0
        return json.loads(capsys.readouterr().out)

    data = IndexedDataset(corpus)
    overview = shown("--top", "3")
    assert (overview["documents"], overview["tokens"]) == (len(DOCUMENTS), data.num_tokens)
    assert sum(overview["tokens_per_document"].values()) == len(DOCUMENTS)
    ids, counts = np.unique(data.tokens(0, data.num_tokens), return_counts=True)
    assert sorted(overview["commonest_tokens"].values()) == sorted(counts)[-3:]
    assert overview["distinct_tokens"] == len(ids)
    assert shown("--document", "7", "--tokenizer", model)["text"] == DOCUMENTS[7]
    assert shown("--document", "7")["ids"] == data.document(7).tolist()
    sample = shown("--sample", "5", "--seq-length", "16", "--seed", "3")
    assert sample["ids"] == data.tokens(sample["first_token"], 17).tolist()
    assert dataset.main(["inspect", corpus, "--document", "999"]) == 2


def test_length_histogram_bins() -> None:
    from tools.corpus.inspect import _bin_name

    assert [_bin_name(digits) for digits in range(5)] == ["0", "1", "2-3", "4-7", "8-15"]


def test_inspect_refuses_another_tokenizer(tmp_path: Path, corpus: str, capsys) -> None:
    from tools import train_tokenizer

    source = write_jsonl(tmp_path / "in.jsonl", make_documents(200, seed=9))
    args = ["--input", str(source), "--vocab-size", "384", "--output", str(tmp_path / "other")]
    assert train_tokenizer.main(args) == 0
    assert dataset.main(["inspect", corpus, "--document", "0", "--tokenizer", str(tmp_path / "other.model")]) == 2
    assert "was made with tokenizer" in capsys.readouterr().err


def test_a_corpus_given_twice_or_as_its_own_output_is_refused(tmp_path: Path, corpus: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(corpus)
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    for other in (corpus, "whole/c", "./whole/c", "link/c"):
        assert dataset.main(["merge", corpus, other, "--output", str(tmp_path / "m")]) == 2
        assert "is given twice" in capsys.readouterr().err
        assert dataset.main(["merge", corpus, "--output", other, "--overwrite"]) == 2
        assert "is one of the inputs" in capsys.readouterr().err
    assert contents(corpus) == before and not list(tmp_path.glob("m*"))


def test_missing_shards_are_named(tmp_path: Path, model: str, corpus: str, capsys) -> None:
    source = Path(corpus).parent / "in.jsonl"
    args = ["--input", str(source), "--tokenizer", model, "--output", str(tmp_path / "s"), "--workers", "1"]
    for number in range(3):
        assert preprocess.main([*args, "--shard", f"{number}/3"]) == 0
    some = [str(tmp_path / f"s-{number:05d}-of-00003") for number in (0, 2)]
    assert dataset.main(["merge", *some, "--output", str(tmp_path / "m")]) == 2
    assert "of 3 shards 1 are missing: 1; give all of them, or --partial" in capsys.readouterr().err
    assert dataset.main(["merge", *some, "--output", str(tmp_path / "m"), "--partial"]) == 0


def test_two_merges_at_once_do_not_share_an_output(tmp_path: Path, corpus: str, capsys) -> None:
    from tools.locks import claim

    (tmp_path / "m.work").mkdir()
    with claim(tmp_path / "m.work" / "lock", "busy"):
        assert dataset.main(["merge", corpus, "--output", str(tmp_path / "m")]) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert dataset.main(["merge", corpus, "--output", str(tmp_path / "m")]) == 0
    assert not (tmp_path / "m.work").exists()


def test_duplicates_that_a_merge_leaves_out_are_counted(tmp_path: Path, model: str, capsys) -> None:
    a = make(tmp_path / "a", model, DOCUMENTS[:5])
    b = make(tmp_path / "b", model, DOCUMENTS[3:9])
    capsys.readouterr()
    assert dataset.main(["merge", a, b, "--output", str(tmp_path / "m"), "--deduplicate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["duplicates"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seq-length", "8"], "give --sample N with them"),
        (["--document", "0", "--seed", "1"], "give --sample N with them"),
        (["--document", "0", "--top", "3"], "--top belongs to the overview"),
        (["--sample", "0", "--top", "3"], "--top belongs to the overview"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(corpus: str, capsys, options: list[str], said: str) -> None:
    assert dataset.main(["inspect", corpus, *options]) == 2
    assert said in capsys.readouterr().err
