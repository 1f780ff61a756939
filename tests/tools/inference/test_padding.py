"""A model with more rows than its tokenizer has tokens, or whose logits are NaN: its text is text, or a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrain.callbacks.samples import SamplesCallback
from pretrain.data.tokenizers import Tokenizer, load_tokenizer
from pretrain.errors import DataError
from pretrain.run_folder import RunFolder
from tools.generate import build_parser, write

ROWS = 520
"""Of a tokenizer of 512 tokens."""


class Padded(nn.Module):
    """Always says the same: a padding id first, then ``likely``."""

    def __init__(self, likely: int, odd: float = 0.0):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(ROWS))
        self.logits.data[likely], self.logits.data[ROWS - 1], self.logits.data[3] = 50.0, 90.0, odd

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.expand(*tokens.shape, -1)

    def next_logits(self, tokens: Tensor, last: Tensor) -> Tensor:
        return self.logits.detach().expand(len(tokens), -1)


@pytest.fixture(scope="module")
def tokenizer(model: str) -> Tokenizer:
    found = load_tokenizer(model)
    assert found.vocab_size == 512
    return found


@pytest.fixture(scope="module")
def as_json(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With ids that no token has."""
    import tokenizers

    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    vocabulary = {"</s>": 0, "the": 1, "word": 5}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="the")).save(str(path))
    return load_tokenizer(str(path))


def test_ids_that_are_no_tokens_are_decoded_as_what_is_no_character(tokenizer: Tokenizer, as_json: Tokenizer) -> None:
    tokens = tokenizer.encode("the weight").tolist()
    assert tokenizer.decode([*tokens, 512, 1 << 40, -1]) == "the weight" + "\ufffd" * 3
    assert tokenizer.decode([600, *tokens]) == "\ufffdthe weight"
    assert tokenizer.decode(tokens) == "the weight" and tokenizer.decode([]) == ""
    assert as_json.decode([1, 5]) == "the word"
    assert as_json.decode([1, 3, 5, 6, 1 << 40, -1]) == "the\ufffdword" + "\ufffd" * 3


def test_an_end_of_document_that_the_tokenizer_does_not_have_is_one_line(model: str) -> None:
    with pytest.raises(DataError, match="has 512 tokens, and no end-of-document token 515: it is not the one that"):
        load_tokenizer(model, None, 515)


def written(model: nn.Module, tokenizer: Tokenizer, *arguments: str) -> str:
    options = build_parser().parse_args(["-", "the", "--max-new-tokens", "4", "--json", *arguments])
    loaded: Any = SimpleNamespace(model=model, layers=1, longest=16)
    return str(write(loaded, tokenizer, options)[0]["text"])


@pytest.mark.parametrize("arguments", [[], ["--no-cache"], ["--temperature", "0.1"], ["--temperature", "1e-310"]])
def test_generate_chooses_tokens(tokenizer: Tokenizer, arguments: list[str]) -> None:
    word = int(tokenizer.encode("the")[-1])
    text = written(Padded(word), tokenizer, *arguments)
    assert text == tokenizer.decode([*tokenizer.encode("the").tolist(), *[word] * 4])[3:]


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("arguments", [[], ["--temperature", "1"]])
def test_generate_says_that_a_model_has_diverged(tokenizer: Tokenizer, odd: float, arguments: list[str]) -> None:
    with pytest.raises(DataError, match="the model's logits are NaN or infinite, expected finite ones"):
        written(Padded(7, odd), tokenizer, *arguments)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("odd", [0.0, math.nan])
def test_a_run_writes_its_samples_and_goes_on(
    tokenizer: Tokenizer, tmp_path: Path, temperature: float, odd: float, capsys: pytest.CaptureFixture[str]
) -> None:
    word = int(tokenizer.encode("the")[-1])
    settings = SimpleNamespace(
        prompts=("the",), prompts_interval=1, interval=1, prompts_tokens=4, prompts_temperature=temperature
    )
    engine = Padded(word, odd)
    engine.fixed_rows = False
    trainer: Any = SimpleNamespace(
        config=SimpleNamespace(
            evaluation=settings, train=SimpleNamespace(micro_batch_size=2, seed=1), data=SimpleNamespace(seq_length=16)
        ),
        engine=engine, layout=SimpleNamespace(is_main=True, tensor_size=1, told=list), step=1, total_steps=9,
        stopping=lambda: False, stop_reason=None,
    )  # fmt: skip
    samples = SamplesCallback(RunFolder(tmp_path))
    samples._tokenizer, samples._prompts = tokenizer, [tokenizer.encode("the").tolist()]
    samples.after_step(trainer, {})
    (row,) = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    token = 3 if math.isnan(odd) else word
    assert row["text"] == tokenizer.decode([*samples._prompts[0], *[token] * 4])[3:]
    assert capsys.readouterr().out.startswith('sample at step 1: "the" -> ')
