"""Encoding a long document in pieces gives the tokens of encoding it whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from pretrain.data.pieces import Cut, find_cut, pieces
from tests.tools.texts import make_documents

TEXT = "\n".join(make_documents(300, seed=2)) + " a  b   c \n d "


def sentencepiece_model(**options) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_writer=model, vocab_size=400, byte_fallback=True,
        minloglevel=2, **{"model_type": "bpe", **options},
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        ({"normalization_rule_name": "identity", "remove_extra_whitespaces": False}, Cut.DROP),
        ({"normalization_rule_name": "nmt_nfkc"}, Cut.DROP),
        ({"model_type": "unigram", "hard_vocab_limit": False}, Cut.DROP),
        ({"add_dummy_prefix": False, "remove_extra_whitespaces": False}, Cut.KEEP),
        ({"add_dummy_prefix": False}, Cut.NEVER),
        ({"split_by_whitespace": False}, Cut.NEVER),
    ],
)
def test_sentencepiece_pieces_give_the_same_tokens(options: dict, cut: Cut) -> None:
    model = sentencepiece_model(**options)
    assert find_cut(model.encode, [model.id_to_piece(n) for n in range(model.get_piece_size())]) is cut
    cut_up = list(pieces(TEXT, 50, cut))
    assert len(cut_up) == 1 if cut is Cut.NEVER else len(cut_up) > 50
    assert np.concatenate([model.encode(piece) for piece in cut_up]).tolist() == model.encode(TEXT)


def test_byte_level_pieces_give_the_same_tokens() -> None:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.train_from_iterator(TEXT.splitlines(), trainers.BpeTrainer(vocab_size=600, show_progress=False))
    cut = find_cut(lambda text: model.encode(text).ids, model.get_vocab())
    assert cut is Cut.KEEP
    joined = [token for piece in pieces(TEXT, 50, cut) for token in model.encode(piece).ids]
    assert joined == model.encode(TEXT).ids


@pytest.mark.parametrize("cut", [Cut.DROP, Cut.KEEP])
@pytest.mark.parametrize("text", ["", " ", "   ", "a b", " a", "a ", "ab  cd", "a\n b", "nospace" * 20])
def test_odd_texts_keep_every_character(text: str, cut: Cut) -> None:
    assert (" " if cut is Cut.DROP else "").join(pieces(text, 1, cut)) == text
