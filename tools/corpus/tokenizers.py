"""SentencePiece models and Hugging Face ``tokenizer.json`` files behind one interface."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.errors import DataError
from tools.corpus.pieces import find_cut, pieces

_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")
_BPE_PIECE, _PIECE = 1 << 14, 1 << 18
"""Characters encoded at once. BPE slows down on long text, so it gets shorter pieces."""


class Tokenizer(Protocol):
    """What preprocessing needs of a tokenizer."""

    vocab_size: int
    eos_id: int
    sha256: str

    def encode(self, text: str) -> np.ndarray:
        """Token ids of ``text`` without special tokens, int32 ``(tokens,)``."""

    def decode(self, tokens: np.ndarray) -> str:
        """Text of token ids, ``(tokens,)``."""


class SentencePieceTokenizer:
    """A SentencePiece ``.model`` file."""

    def __init__(self, path: Path, eos_token: str | None):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        content = path.read_bytes()
        try:
            model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"tokenizer {path} is not a SentencePiece model: {str(error).splitlines()[0]}") from None
        self._model = model
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = model.get_piece_size()
        self.eos_id = model.piece_to_id(eos_token) if eos_token else model.eos_id()
        if self.eos_id < 0 or (eos_token and self.eos_id == model.unk_id()):
            named = f" {eos_token}" if eos_token else ""
            raise DataError(f"tokenizer {path} has no end-of-document token{named}; name it with --eos-token")
        spec = sentencepiece_model_pb2.ModelProto.FromString(content).trainer_spec
        self._piece = _BPE_PIECE if spec.model_type == spec.BPE else _PIECE
        self._cut = find_cut(model.encode, [model.id_to_piece(number) for number in range(self.vocab_size)])

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 ``(tokens,)``."""
        if len(text) <= self._piece:
            return self._model.encode_as_numpy(text)
        return np.concatenate([self._model.encode_as_numpy(piece) for piece in pieces(text, self._piece, self._cut)])

    def decode(self, tokens: np.ndarray) -> str:
        """Text."""
        return self._model.decode([int(token) for token in tokens])


class JsonTokenizer:
    """A Hugging Face ``tokenizer.json`` file."""

    def __init__(self, path: Path, eos_token: str | None):
        import tokenizers

        content = path.read_bytes()
        try:
            model: Any = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:
            # The Rust binding raises bare `Exception`.
            raise DataError(f"tokenizer {path} is not a Hugging Face tokenizer.json: {error}") from None
        model.no_truncation()
        model.no_padding()
        self._model = model
        self.sha256 = hashlib.sha256(content).hexdigest()
        vocabulary = model.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        found = [token for token in ([eos_token] if eos_token else _END_TOKENS) if token in vocabulary]
        if not found:
            raise DataError(
                f"tokenizer {path} has no token {eos_token or ' or '.join(_END_TOKENS)}; name its end-of-document "
                "token with --eos-token"
            )
        self.eos_id = vocabulary[found[0]]
        self._cut = find_cut(self._ids, vocabulary)

    def _ids(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 ``(tokens,)``."""
        return np.concatenate([np.array(self._ids(piece), np.int32) for piece in pieces(text, _PIECE, self._cut)])

    def decode(self, tokens: np.ndarray) -> str:
        """Text."""
        return self._model.decode([int(token) for token in tokens], skip_special_tokens=False)


@lru_cache(maxsize=4)
def load_tokenizer(path: str, eos_token: str | None = None) -> Tokenizer:
    """Open a tokenizer by its file name (``.json``: Hugging Face; anything else: SentencePiece); kept per process.

    Raises:
        DataError: the file is missing, of another format, or has no end-of-document token.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(
            f"tokenizer {path} does not exist; expected a SentencePiece .model or a tokenizer.json, such as "
            "python -m tools.train_tokenizer writes"
        )
    return JsonTokenizer(file, eos_token) if file.suffix == ".json" else SentencePieceTokenizer(file, eos_token)
