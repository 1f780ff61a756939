"""What a model from elsewhere has and the model built here does not is named and refused, or dropped as asked."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.damage import numpy_file, pickled
from tests.tools.checkpoints.models import make_hf, read_vectors
from tools import import_hf

Weights = dict[str, Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def import_(*arguments: Any) -> int:
    return import_hf.main([str(argument) for argument in (*arguments, "--density", 1)])


def edit(change: Callable[[Weights], object], **config: Any) -> Callable[[Path], None]:
    """Change tensors and settings of a model's folder."""

    def edited(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        given = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**given, **config}))

    return edited


def set_keys(**config: Any) -> Callable[[Path], None]:
    return edit(lambda weights: None, **config)


def another_head(weights: Weights) -> None:
    weights[HEAD] = weights[EMBEDDING] + 1e-3


def biases(weights: Weights) -> None:
    for layer in (0, 1):
        weights[f"model.layers.{layer}.self_attn.q_proj.bias"] = torch.ones(24)


def third_layer(weights: Weights) -> None:
    weights.update({k.replace(".1.", ".2."): v.clone() for k, v in weights.items() if ".layers.1." in k})


def other_frequencies(weights: Weights) -> None:
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.tensor([1.0, 0.5, 0.25, 0.125])


def second_file(folder: Path) -> None:
    shutil.copyfile(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")


def tensor_beside_the_index(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    index = {"weight_map": {name: "model.safetensors" for name in weights}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({**weights, "model.extra": torch.ones(3)}, folder / "model.safetensors")


CASES: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "head that is another": (
        edit(another_head, tie_word_embeddings=True),
        ["holds 1 tensor that", "lm_head.weight", "differs from the embedding that config.json ties it to"],
        [HEAD],
    ),
    "biases": (edit(biases), ["holds 2 tensors that", "model.layers.{0,1}.self_attn.q_proj.bias"], ["*.bias"]),
    "surplus layer": (edit(third_layer), ["holds 9 tensors", "model.layers.2.mlp.up_proj"], ["model.layers.2.*"]),
    "frequencies of another base": (edit(other_frequencies), ["rotary_emb.inv_freq"], ["*.inv_freq"]),
    "file beside the model": (second_file, ["which is the model?"], ["model-00001-of-00002.safetensors"]),
    "tensor beside the index": (tensor_beside_the_index, ["does not list", "model.extra"], ["model.extra"]),
    "sliding window": (set_keys(sliding_window=64), ["sets sliding_window to 64"], ["sliding_window"]),
    "dropout": (set_keys(attention_dropout=0.1), ["sets attention_dropout to 0.1"], ["attention_dropout"]),
    "multipliers": (
        set_keys(embedding_multiplier=12.0, logits_scaling=8.0),
        ["sets embedding_multiplier to 12.0", "sets logits_scaling to 8.0"],
        ["embedding_multiplier", "logits_scaling"],
    ),
    "code of its own": (
        set_keys(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}),
        ["sets auto_map to", "code of its own is never run"],
        ["auto_map"],
    ),
    "bias in settings": (
        edit(biases, attention_bias=True), ["model.attention_bias is true"], ["attention_bias", "*.bias"],
    ),
    "scaled rotary frequencies": (
        set_keys(rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_parameters=None),
        ["scales its rotary frequencies"],
        ["rope_scaling"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name_and_dropped_only_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    plant, said, drop = CASES[name]
    make_hf(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "source")
    plant(tmp_path / "source")
    capsys.readouterr()
    assert import_(tmp_path / "source", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said) and error.startswith("error: "), error
    assert not (tmp_path / "out").exists()
    dropped = [word for pattern in drop for word in ("--drop", pattern)]
    assert import_(tmp_path / "source", tmp_path / "out", *dropped) == 0
    assert capsys.readouterr().out.startswith("note: dropped, as asked: ")
    assert json.loads((tmp_path / "out" / "origin.json").read_text())["dropped"]
    tied = "tie_word_embeddings" in said[-1] or name == "head that is another"
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    imported = read_vectors(tmp_path / "out" / "step-00000000")
    assert torch.equal(imported[EMBEDDING], plain[EMBEDDING].flatten()) and (HEAD in imported) != tied


def test_what_says_nothing_new_is_taken(tmp_path: Path) -> None:
    """A copy of the tied head, frequencies that follow from the settings, and keys that are switched off."""
    make_hf(tmp_path / "source", tie_word_embeddings=True)

    def older(weights: Weights) -> None:
        weights[HEAD] = weights[EMBEDDING].clone()
        for layer in (0, 1):
            name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            weights[name] = (10000.0 ** -(torch.arange(0, 8, 2) / 8)).half()

    edit(older, sliding_window=None, use_sliding_window=False, attention_dropout=0.0, layer_types=[])(
        tmp_path / "source"
    )
    assert import_(tmp_path / "source", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "origin.json").read_text())["dropped"] == []


def test_a_pattern_that_fits_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hf(tmp_path / "source")
    assert import_(tmp_path / "source", tmp_path / "out", "--drop", "*.biass") == 2
    assert "--drop *.biass fits nothing" in capsys.readouterr().err


def test_a_weight_of_the_model_cannot_be_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hf(tmp_path / "source")
    assert import_(tmp_path / "source", tmp_path / "out", "--drop", "model.norm.weight", "--drop", "hidden_size") == 2
    assert "--drop model.norm.weight fits nothing" in capsys.readouterr().err


HOSTILE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "pickle in the old format": (
        lambda f, m: ((f / "model.safetensors").unlink(), (f / "pytorch_model.bin").write_bytes(pickled(m))),
        "pytorch_model.bin is of an older format",
    ),
    "pickle named safetensors": (lambda f, m: (f / "model.safetensors").write_bytes(pickled(m)), "is damaged"),
    "array named safetensors": (lambda f, m: (f / "model.safetensors").write_bytes(numpy_file(m)), "is damaged"),
    "index that leads outside": (
        lambda f, m: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        "names the file '../x.safetensors', expected .safetensors files beside it",
    ),
    "index of a pickle": (
        lambda f, m: (
            (f / "pytorch_model.bin").write_bytes(pickled(m)),
            (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}})),
        ),
        "names the file 'pytorch_model.bin'",
    ),
    "index that nests": (
        lambda f, m: (f / "model.safetensors.index.json").write_text("[" * 100_000),
        "index.json is damaged",
    ),
    "settings that nest": (lambda f, m: (f / "config.json").write_text("[" * 100_000), "nested too deeply"),
    "settings that are a list": (lambda f, m: (f / "config.json").write_text("[]"), "config.json holds no object"),
    "settings of 60,000 layers": (lambda f, m: set_keys(num_hidden_layers=60_000)(f), "tensors for 60000 layers"),
    "settings of a number of 4,000 digits": (lambda f, m: set_keys(hidden_size=10**4000)(f), "config.json"),
    "code of its own": (lambda f, m: set_keys(auto_map={"AutoConfig": "x.X"}, trust_remote_code=True)(f), "never run"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_folder_from_elsewhere_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make_hf(tmp_path / "source")
    plant, said = HOSTILE[name]
    (tmp_path / "source" / "modeling_x.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    plant(tmp_path / "source", tmp_path / "it-ran")
    capsys.readouterr()
    assert import_(tmp_path / "source", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert not (tmp_path / "it-ran").exists() and not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_kind_gives_way_to_a_good_one(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """tiktoken's files are named ``tokenizer.model`` too: lines of a token in base 64 and its number."""
    make_hf(tmp_path / "source")
    lines = [f"{base64.b64encode(bytes([n])).decode()} {n}" for n in range(90)]
    (tmp_path / "source" / "tokenizer.model").write_text("\n".join(lines))
    good = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    good.save(str(tmp_path / "source" / "tokenizer.json"))
    capsys.readouterr()
    assert import_(tmp_path / "source", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "note: tokenizer.model is passed over: it is no SentencePiece model, though it may be tiktoken's" in printed
    assert (tmp_path / "out" / "tokenizer.json").is_file() and not (tmp_path / "out" / "tokenizer.model").exists()
    # Where both are good, SentencePiece's stays first; where none is, the import goes without, and says so.
    shutil.copyfile(model, tmp_path / "source" / "tokenizer.model")
    assert import_(tmp_path / "source", tmp_path / "both") == 0 and (tmp_path / "both" / "tokenizer.model").is_file()
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / "source" / name).write_bytes(pickled(tmp_path / "it-ran"))
    capsys.readouterr()
    assert import_(tmp_path / "source", tmp_path / "none") == 0
    printed = capsys.readouterr().out
    assert "no tokenizer" in printed and printed.count("is passed over") == 2 and not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("model.layers.1.mlp.down_proj.weight", float("nan")), (EMBEDDING, float("inf")), (HEAD, 1e300)]
)
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: float
) -> None:
    """Of blocks with NaN in them none would be the largest: they would be left out without a word."""
    make_hf(tmp_path / "model")

    def damage(weights: Weights) -> None:
        weights[name] = weights[name].double()
        weights[name][0, 1] = value

    edit(damage)(tmp_path / "model")
    assert import_hf.main([str(tmp_path / "model"), str(tmp_path / "out"), "--density", "0.5"]) == 2
    assert f" weights of {name} are NaN or infinite in fp32" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_fills_up_in_the_midst_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    make_hf(tmp_path / "model")
    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
    assert import_(tmp_path / "model", tmp_path / "out") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
