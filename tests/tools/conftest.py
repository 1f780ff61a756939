"""A small tokenizer, trained once."""

from __future__ import annotations

import pytest

from tests.tools.texts import make_documents, write_jsonl
from tools.train_tokenizer import main


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a SentencePiece model of 512 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_jsonl(folder / "in.jsonl", make_documents(400, seed=1))
    args = ["--input", str(folder / "in.jsonl"), "--vocab-size", "384", "--pad-to-multiple", "256"]
    assert main([*args, "--character-coverage", "1.0", "--output", str(folder / "tok")]) == 0
    return str(folder / "tok.model")
