"""SentencePiece models and Hugging Face ``tokenizer.json`` files behind one interface."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.errors import DataError

_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")


class Tokenizer(Protocol):
    """What preprocessing needs of a tokenizer."""

    vocab_size: int
    eos_id: int
    sha256: str

    def encode(self, text: str) -> np.ndarray:
        """Token ids of ``text`` without special tokens, ``(tokens,)``."""

    def decode(self, tokens: np.ndarray) -> str:
        """Text of token ids, ``(tokens,)``."""


class SentencePieceTokenizer:
    """A SentencePiece ``.model`` file."""

    def __init__(self, path: Path, eos_token: str | None):
        import sentencepiece

        content = path.read_bytes()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"tokenizer {path} is not a SentencePiece model: {str(error).splitlines()[0]}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = self._model.get_piece_size()
        self.eos_id = self._model.piece_to_id(eos_token) if eos_token else self._model.eos_id()
        if self.eos_id < 0 or (eos_token and self.eos_id == self._model.unk_id()):
            raise DataError(
                f"tokenizer {path} has no end-of-document token {eos_token or ''}; name it with --eos-token"
            )

    def encode(self, text: str) -> np.ndarray:
        """Token ids, ``(tokens,)``."""
        return self._model.encode_as_numpy(text)

    def decode(self, tokens: np.ndarray) -> str:
        """Text."""
        return self._model.decode([int(token) for token in tokens])


class JsonTokenizer:
    """A Hugging Face ``tokenizer.json`` file."""

    def __init__(self, path: Path, eos_token: str | None):
        import tokenizers

        content = path.read_bytes()
        try:
            self._model: Any = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:
            # The Rust binding raises bare `Exception`.
            raise DataError(f"tokenizer {path} is not a Hugging Face tokenizer.json: {error}") from None
        self._model.no_truncation()
        self._model.no_padding()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        found = [self._model.token_to_id(token) for token in ([eos_token] if eos_token else _END_TOKENS)]
        known = [token for token in found if token is not None]
        if not known:
            raise DataError(
                f"tokenizer {path} has no token {eos_token or ' or '.join(_END_TOKENS)}; name its end-of-document "
                "token with --eos-token"
            )
        self.eos_id = known[0]

    def encode(self, text: str) -> np.ndarray:
        """Token ids, ``(tokens,)``."""
        return np.array(self._model.encode(text, add_special_tokens=False).ids, dtype=np.int32)

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
