"""A special token quoted in a document gives its letters: documents end where they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from pretrain.data.indexed import IndexedDataset
from pretrain.data.tokenizers import load_tokenizer
from tests.tools.texts import make_documents, write_jsonl
from tools import dataset
from tools.preprocess import main

END = "<|end|>"
QUOTES = [END, f"a {END} b", f"a{END}b", f"{END}{END}", f"<s> is not {END}", f"\n{END}\n", "no quote at all"]
LETTERS = sorted(set("".join(QUOTES)) | {chr(number) for number in range(33, 127)})


def byte_level(**options: bool) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(**options))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END, "<s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([*make_documents(50), *QUOTES * 20], trainer)
    return made


def merges_to_the_end_token() -> tokenizers.Tokenizer:
    """BPE whose merges lead to the token itself, which is nowhere marked as special."""
    vocabulary = {letter: number for number, letter in enumerate(LETTERS)}
    pairs = [("<", "|"), ("<|", "e"), ("<|e", "n"), ("<|en", "d"), ("<|end", "|"), ("<|end|", ">")]
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    made = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))
    made.decoder = decoders.Fuse()
    return made


def unigram() -> tokenizers.Tokenizer:
    vocabulary = [("<unk>", 0.0), (END, 0.0), ("<s>", 0.0), *((letter, -5.0) for letter in [*LETTERS, "\u2581"])]
    made = tokenizers.Tokenizer(models.Unigram(vocabulary, 0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.add_special_tokens([END, "<s>", "<unk>"])
    return made


def word_level() -> tokenizers.Tokenizer:
    words = {word for text in QUOTES for word in text.split()} | {"[UNK]", END, "<s>"}
    made = tokenizers.Tokenizer(models.WordLevel({w: n for n, w in enumerate(sorted(words))}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[UNK]", END, "<s>"])
    return made


def word_piece() -> tokenizers.Tokenizer:
    pieces = ["[UNK]", END, "<s>", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    made = tokenizers.Tokenizer(models.WordPiece({w: n for n, w in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[UNK]", END, "<s>"])
    return made


def added_not_special() -> tokenizers.Tokenizer:
    made = byte_level()
    made.add_tokens([AddedToken("<|stop|>", special=False), AddedToken("  ", special=False)])
    return made


KINDS: list[Callable[[], tokenizers.Tokenizer]] = [
    byte_level, lambda: byte_level(ignore_merges=True), merges_to_the_end_token, unigram, word_level, word_piece,
]  # fmt: skip
NAMES = ["bytes", "bytes, whole words", "merges", "unigram", "words", "word pieces"]


@pytest.mark.parametrize("make", KINDS, ids=NAMES)
def test_quoted_special_tokens_never_become_ids(tmp_path: Path, make: Callable[[], tokenizers.Tokenizer]) -> None:
    path = str(tmp_path / "tokenizer.json")
    given = make()
    given.save(path)
    write_jsonl(tmp_path / "in.jsonl", QUOTES)
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", path, "--eos-token", END, "--workers", "1"]
    assert main([*args, "--output", str(tmp_path / "c")]) == 0
    data, end = IndexedDataset(tmp_path / "c"), given.token_to_id(END)
    assert data.num_documents == len(QUOTES)
    tokens = data.tokens(0, data.num_tokens)
    assert np.count_nonzero(tokens == end) == len(QUOTES), "at the end of each document and nowhere else"
    if (start := given.token_to_id("<s>")) is not None:
        assert start not in tokens
    # What quotes nothing is encoded as ever; what quotes is spelled.
    tokenizer = load_tokenizer(path, END)
    plain = [text for text in make_documents(40) if "<" not in text]
    assert [tokenizer.encode(text).tolist() for text in plain] == [given.encode(text).ids for text in plain]
    if make not in (word_level, word_piece, unigram):
        assert [tokenizer.decode(data.document(n)[:-1]) for n in range(len(QUOTES))] == QUOTES


def test_added_tokens_that_are_not_special_are_still_found(tmp_path: Path) -> None:
    """Such as runs of spaces; but not the end-of-document token, whatever it is marked as."""
    path = str(tmp_path / "tokenizer.json")
    given = added_not_special()
    given.save(path)
    tokenizer = load_tokenizer(path, "<|stop|>")
    assert tokenizer.eos_id == given.token_to_id("<|stop|>")
    assert given.token_to_id("  ") in tokenizer.encode("a  b")
    assert tokenizer.eos_id not in tokenizer.encode("a<|stop|>b")
    assert tokenizer.decode(tokenizer.encode("a<|stop|>b")) == "a<|stop|>b"


@pytest.mark.parametrize("kind", ["CONTROL", "USER_DEFINED"])
def test_sentencepiece_end_tokens_never_come_from_text(tmp_path: Path, model: str, kind: str) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(model).read_bytes())
    piece = proto.pieces.add()
    piece.piece, piece.score, piece.type = END, 0.0, getattr(proto.SentencePiece, kind)
    path = tmp_path / "symbols.model"
    path.write_bytes(proto.SerializeToString())
    write_jsonl(tmp_path / "in.jsonl", [*QUOTES, "</s> <s> <unk>"])
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", str(path), "--eos-token", END, "--workers", "1"]
    assert main([*args, "--output", str(tmp_path / "c")]) == 0
    data, tokenizer = IndexedDataset(tmp_path / "c"), load_tokenizer(str(path), END)
    assert tokenizer.eos_id == 512
    for number, text in enumerate([*QUOTES, "</s> <s> <unk>"]):
        document = data.document(number)
        assert np.flatnonzero(document == 512).tolist() == [len(document) - 1]
        assert not {1, 2} & set(document.tolist())
        assert tokenizer.decode(document[:-1]) == text


def test_an_end_token_that_stands_for_unknown_characters_too_is_not_silent(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordLevel({END: 0, "known": 1}, unk_token=END))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "t.json"))
    write_jsonl(tmp_path / "in.jsonl", ["known known", "known stranger"])
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", str(tmp_path / "t.json"), "--eos-token", END]
    assert main([*args, "--output", str(tmp_path / "c"), "--workers", "1"]) == 0
    assert IndexedDataset(tmp_path / "c").num_documents == 1
    assert json.loads((tmp_path / "c.rejects.jsonl").read_text())["reason"] == "end token in text"


def test_corpora_of_the_earlier_rule_are_not_taken_for_up_to_date(tmp_path: Path, model: str, capsys) -> None:
    """Only where it matters: what SentencePiece makes is what it made."""
    from dataclasses import replace

    from pretrain.data.manifest import read_manifest

    byte_level().save(str(tmp_path / "t.json"))
    write_jsonl(tmp_path / "in.jsonl", QUOTES)
    for tokenizer, eos, changed in ((str(tmp_path / "t.json"), ["--eos-token", END], True), (model, [], False)):
        args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", tokenizer, *eos, "--workers", "1"]
        args += ["--output", str(tmp_path / f"c{changed}")]
        assert main(args) == 0
        manifest = read_manifest(tmp_path / f"c{changed}")
        assert manifest is not None and ("text_rule" in manifest.settings) == changed
        settings = {name: value for name, value in manifest.settings.items() if name != "text_rule"}
        replace(manifest, settings=settings).write(tmp_path / f"c{changed}")
        capsys.readouterr()
        assert main(args) == (2 if changed else 0)


def test_a_corpus_is_shown_with_a_tokenizer_whose_end_token_has_no_known_name(tmp_path: Path, capsys) -> None:
    made = byte_level()
    made.save(str(tmp_path / "t.json"))
    write_jsonl(tmp_path / "in.jsonl", QUOTES)
    args = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer", str(tmp_path / "t.json"), "--eos-token", END]
    assert main([*args, "--output", str(tmp_path / "c"), "--workers", "1"]) == 0
    capsys.readouterr()
    shown = ["inspect", str(tmp_path / "c"), "--document", "1", "--tokenizer", str(tmp_path / "t.json"), "--json"]
    assert dataset.main(shown) == 0
    assert json.loads(capsys.readouterr().out)["text"] == QUOTES[1] + END
