"""SentencePiece models and Hugging Face ``tokenizer.json`` files behind one interface.

Both read text as text: see ``pretrain.data.plain``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.command import told
from pretrain.data.card import old_card
from pretrain.data.pieces import find_cut, pieces
from pretrain.data.plain import plain_json, plain_sentencepiece
from pretrain.errors import DataError
from pretrain.paths import why_no_file

_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")
_BPE_PIECE, _PIECE = 1 << 14, 1 << 18
"""Characters encoded at once. BPE slows down on long text, so it gets shorter pieces."""
TEXT_RULE = "quoted special tokens are text"


class Tokenizer(Protocol):
    """What preprocessing needs of a tokenizer."""

    vocab_size: int
    eos_id: int
    sha256: str
    text_rule: str | None
    """For the manifest: how quoted special tokens are read, where earlier versions read them otherwise."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids of ``text`` without special tokens, int32 ``(tokens,)``."""

    def decode(self, tokens: Iterable[Any]) -> str:
        """Text of token ids, ``(tokens,)``; U+FFFD for each that is none of its own, such as padding of a model."""


class SentencePieceTokenizer:
    """A SentencePiece ``.model`` file."""

    def __init__(self, path: Path, eos_token: str | None, eos_id: int | None = None):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        content = path.read_bytes()
        try:
            model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"tokenizer {path} is not a SentencePiece model: {str(error).splitlines()[0]}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = model.get_piece_size()
        if eos_id is None:
            eos_id = model.piece_to_id(eos_token) if eos_token else model.eos_id()
        self.eos_id: int = eos_id
        if self.eos_id < 0 or (eos_token and self.eos_id == model.unk_id()):
            named = f" {eos_token}" if eos_token else ""
            raise DataError(f"tokenizer {path} has no end-of-document token{named}; name it with --eos-token")
        if self.eos_id >= self.vocab_size:
            raise DataError(
                f"tokenizer {path} has {self.vocab_size} tokens, and no end-of-document token {self.eos_id}: it is not "
                "the one that made the data"
            )
        if model.is_byte(self.eos_id):
            raise DataError(f"tokenizer {path} needs {eos_token} for the bytes of texts; name another --eos-token")
        plain = plain_sentencepiece(content, self.eos_id)
        self.text_rule: str | None = None if plain is content else TEXT_RULE
        self._shown = model
        self._model = model if plain is content else sentencepiece.SentencePieceProcessor(model_proto=plain)
        spec = sentencepiece_model_pb2.ModelProto.FromString(content).trainer_spec
        self._piece = _BPE_PIECE if spec.model_type == spec.BPE else _PIECE
        self._cut = find_cut(self._model.encode, [model.id_to_piece(number) for number in range(self.vocab_size)])

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 ``(tokens,)``."""
        if len(text) <= self._piece:
            return self._model.encode_as_numpy(text)
        return np.concatenate([self._model.encode_as_numpy(piece) for piece in pieces(text, self._piece, self._cut)])

    def decode(self, tokens: Iterable[Any]) -> str:
        """Text."""
        return _decoded(tokens, range(self.vocab_size), self._shown.decode)


class JsonTokenizer:
    """A Hugging Face ``tokenizer.json`` file."""

    def __init__(self, path: Path, eos_token: str | None, eos_id: int | None = None):
        import tokenizers

        content = path.read_bytes()
        if old_card(path) is not None:
            model_path = path.with_suffix(".model")
            raise DataError(f"tokenizer {path} is the card of a SentencePiece model, no tokenizer; give {model_path}")
        try:
            model: Any = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:
            # The Rust binding raises bare `Exception`.
            raise DataError(f"tokenizer {path} is not a Hugging Face tokenizer.json: {error}") from None
        self._model = model
        self.text_rule: str | None = TEXT_RULE
        self.sha256 = hashlib.sha256(content).hexdigest()
        vocabulary = model.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self._known = frozenset(vocabulary.values())
        if eos_token is None and eos_id is not None:
            eos_token = model.id_to_token(eos_id)
        found = [token for token in ([eos_token] if eos_token else _END_TOKENS) if token in vocabulary]
        if not found:
            raise DataError(
                f"tokenizer {path} has no token {eos_token or ' or '.join(_END_TOKENS)}; name its end-of-document "
                "token with --eos-token"
            )
        self.eos_id = vocabulary[found[0]]
        self._plain: Any = tokenizers.Tokenizer.from_str(plain_json(content.decode(), found[0]))
        self._plain.no_truncation()
        self._plain.no_padding()
        self._plain.encode_special_tokens = True
        self._cut = find_cut(self._ids, vocabulary)

    def _ids(self, text: str) -> list[int]:
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 ``(tokens,)``."""
        return np.concatenate([np.array(self._ids(piece), np.int32) for piece in pieces(text, _PIECE, self._cut)])

    def decode(self, tokens: Iterable[Any]) -> str:
        """Text."""
        return _decoded(tokens, self._known, partial(self._model.decode, skip_special_tokens=False))


def _decoded(tokens: Iterable[Any], known: Container[int], decode: Callable[[list[int]], str]) -> str:
    """The text of the ids that are ``known``, and U+FFFD for each of the others."""
    text, own = "", list[int]()
    for token in map(int, tokens):
        if token in known:
            own.append(token)
        else:
            text, own = f"{text}{decode(own)}\ufffd", []
    return text + decode(own)


@lru_cache(maxsize=4)
def load_tokenizer(path: str, eos_token: str | None = None, eos_id: int | None = None) -> Tokenizer:
    """Open a tokenizer by its file name (``.json``: Hugging Face; anything else: SentencePiece); kept per process.

    Args:
        path: the file.
        eos_token: its end-of-document token; default: its own.
        eos_id: the same by number, as a manifest has it.

    Raises:
        DataError: the file is missing, of another format, or has no end-of-document token.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(
            f"tokenizer {path} {why_no_file(path)}; expected a SentencePiece .model or a tokenizer.json, such as "
            f"{told('tokenizer', 'train')} writes"
        )
    kind = JsonTokenizer if file.suffix == ".json" else SentencePieceTokenizer
    return kind(file, eos_token, eos_id)
