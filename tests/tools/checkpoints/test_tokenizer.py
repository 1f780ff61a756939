"""Exported tokenizers give the ids that preprocessing gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers

from pretrain.errors import DataError
from tests.pretrain.attempts import corpus_with_manifest
from tests.tools.texts import make_documents, write_jsonl
from tools import export_hf
from tools.checkpoints.tokenizer import export_tokenizer, not_of_the_data
from tools.train_tokenizer import main as train_tokenizer

TEXTS = [
    *make_documents(200, seed=3),
    *("", " ", "   leading", "trailing  ", "two  spaces", "\n\n", "\u0f00\U0001f9ea", "1234567890", "\u2581x\u2581"),
    *("a<|user|>b <|user|> c<|user|><|user|>", "<|user|>", "<|us"),
]


def train(folder: Path, kind: str, *options: str) -> Path:
    write_jsonl(folder / "in.jsonl", make_documents(400, seed=1))
    common = ["--vocab-size", "330", "--pad-to-multiple", "1", "--character-coverage", "1.0", "--model-type", kind]
    command = ["--input", str(folder / "in.jsonl"), *common, *options, "--output", str(folder / "tok")]
    assert train_tokenizer(command) == 0
    return folder / "tok.model"


def define_symbol(path: Path) -> None:
    """Make the model's own special token a user-defined symbol, as models from elsewhere have them."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    assert proto.pieces[3].piece == "<|user|>"
    proto.pieces[3].type = proto.SentencePiece.USER_DEFINED
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("special", [["--special-tokens", "<|user|>"], []])
def test_sentencepiece_ids_come_out_of_transformers(tmp_path: Path, kind: str, special: list[str]) -> None:
    path = train(tmp_path, kind, *special)
    if special:
        define_symbol(path)
    (tmp_path / "out").mkdir()
    ids = export_tokenizer(path, tmp_path / "out", vocab_size=330)
    model: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert loaded.encode(text) == model.encode(text), text
        assert loaded.decode(loaded.encode(text)) == model.decode(model.encode(text)), text
    assert ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == path.read_bytes()


def test_special_tokens_of_ones_own_are_special_there_too(tmp_path: Path) -> None:
    path = train(tmp_path, "bpe", "--special-tokens", "<|user|>")
    (tmp_path / "out").mkdir()
    export_tokenizer(path, tmp_path / "out", vocab_size=330)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert loaded.encode("<|user|>") == [3] and model.encode("<|user|>") != [3]


def test_llama_tokenizer_loads_it_too(tmp_path: Path) -> None:
    """transformers' own class for LLaMA; it differs from SentencePiece where a text begins with a space."""
    path = train(tmp_path, "bpe")
    (tmp_path / "out").mkdir()
    export_tokenizer(path, tmp_path / "out", vocab_size=384)
    model: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
    loaded = transformers.LlamaTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        if text.strip() and text[0] not in " \u2581":
            assert loaded.encode(text) == model.encode(text), text


def test_a_tokenizer_json_is_copied_as_it_is(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(tmp_path / "mine.json"))
    (tmp_path / "out").mkdir()
    assert export_tokenizer(tmp_path / "mine.json", tmp_path / "out", vocab_size=4) == {"eos_token_id": 0}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "mine.json").read_bytes()
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.encode("abba") == [3, 2, 1] and loaded.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("options", [{"normalization_rule_name": "nmt_nfkc"}, {"add_dummy_prefix": False}])
def test_other_normalizations_are_followed(tmp_path: Path, options: dict[str, Any]) -> None:
    texts = [text for text in make_documents(400, seed=1) if "\x00" not in text]
    prefix = str(tmp_path / "tok")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=prefix, vocab_size=330, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, minloglevel=2, **options,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    export_tokenizer(tmp_path / "tok.model", tmp_path / "out", vocab_size=330)
    model: Any = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (*texts[:50], "  \uff21\uff22  wide   spaces ", "\ufb01x"):
        assert loaded.encode(text) == model.encode(text), text


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = train(tmp_path, "bpe")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"has 330 tokens, the model 97: .*--tokenizer none"):
        export_tokenizer(path, tmp_path / "out", vocab_size=97)
    prefix = str(tmp_path / "word")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 50), model_prefix=prefix, vocab_size=9, model_type="word",
        minloglevel=2,
    )  # fmt: skip
    with pytest.raises(DataError, match="neither a BPE nor a unigram"):
        export_tokenizer(Path(f"{prefix}.model"), tmp_path / "out", vocab_size=97)
    assert not list((tmp_path / "out").iterdir())


def test_the_export_takes_the_runs_tokenizer_or_another_or_none(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"</s>": 5, "a": 1}, []))
    made.save(str(tmp_path / "other.json"))
    options = ["--tokenizer", str(tmp_path / "other.json")]
    assert export_hf.main([str(runs / "grouped"), str(tmp_path / "with"), *options]) == 0
    config = json.loads((tmp_path / "with" / "config.json").read_text())
    assert config["eos_token_id"] == 5 and config["bos_token_id"] is None
    assert export_hf.main([str(runs / "grouped"), str(tmp_path / "without"), "--tokenizer", "none"]) == 0
    assert not list((tmp_path / "without").glob("tokenizer*"))
    capsys.readouterr()
    assert export_hf.main([str(runs / "grouped"), str(tmp_path / "gone"), "--tokenizer", "gone.model"]) == 2
    assert "error: tokenizer gone.model does not exist" in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()


def test_a_tokenizer_that_did_not_make_the_runs_corpora_is_told(tmp_path: Path) -> None:
    """Such as one that was trained anew under the same name. Settings of a checkpoint may hold anything."""
    path, prefix = tmp_path / "it.model", corpus_with_manifest(tmp_path / "known", tokenizer=b"this one")
    path.write_bytes(b"this one")
    data = {"train": [7, {"path": 7}, {"path": f"{tmp_path}/gone"}], "curriculum": [3, {"blend": [{"path": prefix}]}]}
    assert not_of_the_data(path, data) == [] == not_of_the_data(path, {"train": "x", "curriculum": [{"blend": None}]})
    path.write_bytes(b"another one")
    (note,) = not_of_the_data(path, data)
    assert f"it.model (sha256 08518b71617e) is not the run's: {prefix} was made with" in note
