"""``generate``: transformers' greedy text, from any layout's checkpoint, its export, streamed or not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config.schema import Source
from pretrain.errors import DataError
from pretrain.outside import printable
from smet.kernels import few_cpu
from tests.families.runs import FAMILY
from tests.tools.checkpoints.models import load_hf
from tests.tools.inference.conftest import Trained
from tests.tools.inference.runs import LAYOUTS, quietly
from tests.tools.texts import make_documents
from tools.export_hf import main as export
from tools.generate import main as generate
from tools.generate import threads_for
from tools.inference.model import load
from tools.inference.tokenizer import find_tokenizer

TEXTS = [text[:60] for text in make_documents(24, seed=8) if len(text) > 10][:20]


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    quietly(export, trained.folder / "fp32-zero2", out)
    return out


def texts(source: Path, *arguments: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(quietly(generate, source, *arguments, "--json"))["texts"]
    return found


@pytest.fixture(scope="module")
def own(trained: Trained) -> list[dict[str, Any]]:
    """What the run writes: 20 prompts, 64 tokens each."""
    return texts(trained.folder / "fp32-zero2", *TEXTS)


def test_it_is_transformers_greedy_text_on_the_export(
    trained: Trained, exported: Path, own: list[dict[str, Any]]
) -> None:
    import transformers

    theirs = load_hf(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        rows = theirs.generate(**batch, max_new_tokens=64, do_sample=False)
    end = tokenizer.eos_token_id
    loaded = load(trained.folder / "fp32-zero2")
    decode = find_tokenizer(loaded).decode
    for text, prompt, mask, row in zip(own, batch["input_ids"], batch["attention_mask"], rows.tolist(), strict=True):
        before = prompt[mask.bool()].tolist()
        after = row[len(prompt) :]
        after = after[: after.index(end)] if end in after else after
        assert text["text"] == decode([*before, *after])[len(decode(before)) :]
        assert text["tokens"] == len(after) and text["prompt_tokens"] == len(before)
    assert len(own) == 20 and sum(text["tokens"] for text in own) > 600
    assert len({text["text"] for text in own}) > 3


@pytest.mark.parametrize("option", ["--no-cache", "--keep-dense"])
def test_a_cache_or_kept_weights_change_no_text(trained: Trained, own: list[dict[str, Any]], option: str) -> None:
    some = texts(trained.folder / "fp32-zero2", *TEXTS[:2], option)
    assert [text["text"] for text in some] == [text["text"] for text in own[:2]]


def test_an_export_keeps_its_layers_sparse_and_writes_the_same(
    trained: Trained, exported: Path, own: list[dict[str, Any]]
) -> None:
    some = texts(exported, *TEXTS[:4])
    assert [text["text"] for text in some] == [text["text"] for text in own[:4]]
    of_files, of_run = (load(path) for path in (exported, trained.folder / "fp32-zero2"))
    assert of_files.sparse.keys() == of_run.sparse.keys() and len(of_run.sparse) == 14
    for name, layer in of_run.sparse.items():
        assert torch.equal(layer.values, of_files.sparse[name].values), name
    assert of_files.model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("name", [*(f"fp32-{name}" for name in LAYOUTS), "bf16-tiles"])
def test_every_layouts_checkpoint_is_read_into_one_process(trained: Trained, name: str, tmp_path: Path) -> None:
    """Also one whose features are permuted."""
    quietly(export, trained.folder / name, tmp_path / "out")
    sources = (trained.folder / name, tmp_path / "out")
    run, files = (texts(source, *TEXTS[:2], "--max-new-tokens", 12, "--precision", "fp32") for source in sources)
    assert [text["text"] for text in run] == [text["text"] for text in files] and run[0]["tokens"] > 2


def test_streamed_text_is_the_text(
    trained: Trained, own: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(trained.folder / "fp32-zero2")
    assert generate([source, *TEXTS[:3]]) == 0
    streamed = capsys.readouterr()
    assert generate([source, *TEXTS[:3], "--no-stream"]) == 0
    at_once = capsys.readouterr().out
    assert streamed.out == at_once == "".join(printable(f"{text['prompt']}{text['text']}\n") for text in own[:3])
    few = few_cpu.library() is not None
    how = "from which each token is multiplied" if few else "made dense one at a time"
    assert "14 sparse layers hold" in streamed.err and how in streamed.err
    assert "fp32 on cpu, keys and values kept" in streamed.err and "step-00000006" in streamed.err


def test_a_small_model_is_read_by_one_thread() -> None:
    assert [threads_for(weights, 8) for weights in (0, 3 << 20, 20 << 20, 1 << 40)] == [1, 1, 2, 8]


def test_what_is_drawn_follows_the_seed(trained: Trained) -> None:
    def drawn(*more: Any) -> list[str]:
        found = texts(trained.folder / "fp32-zero2", "the", "the", "--temperature", 1.2, "--max-new-tokens", 16, *more)
        return [text["text"] for text in found]

    first = drawn()
    assert first == drawn() and first[0] != first[1], "each prompt has chances of its own"
    assert first != drawn("--seed", 1)
    greedy = texts(trained.folder / "fp32-zero2", "the", "--max-new-tokens", 16)[0]["text"]
    assert drawn("--top-p", 1e-9) == [greedy, greedy]


def test_the_context_ends_a_text(trained: Trained) -> None:
    (text,) = texts(trained.folder / "fp32-zero2", "the sparse", "--max-new-tokens", 500)
    assert text["ended"] in ("context", "end of document")
    assert text["prompt_tokens"] + text["tokens"] <= 128


def test_bf16_is_written_in_bf16_unless_told_otherwise(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (([], "bf16 on cpu"), (["--precision", "fp32"], "fp32 on cpu")):
        assert generate([str(trained.folder / "bf16-zero2"), "the", "--max-new-tokens", "2", *more]) == 0
        assert said in capsys.readouterr().err


def test_the_tokenizer_is_found_where_the_run_had_it_or_beside_its_corpus(
    trained: Trained, model: str, tmp_path: Path
) -> None:
    loaded = load(trained.folder / "fp32-zero2")
    whole = loaded.run
    assert whole is not None

    def found_with(output: str = "runs/a", **data: Any) -> int:
        train = replace(whole.train, output_dir=output)
        loaded.run = replace(whole, train=train, data=replace(whole.data, validation=(), **data))
        return find_tokenizer(loaded).vocab_size

    with pytest.raises(DataError, match="neither model nor run names one; name it with --tokenizer FILE"):
        found_with(tokenizer=None, train=())
    for path in Path(trained.corpus).parent.glob("text_train*"):
        shutil.copy(path, tmp_path)
    shutil.copy(model, tmp_path / "other.model")
    corpus = (Source(path=str(tmp_path / "text_train")),)
    assert found_with(tokenizer=None, train=corpus) == 512, "by the checksum in the corpus's manifest"
    # Paths of a run count from the folder in which it was started, wherever this is called.
    with pytest.raises(DataError, match="its data.tokenizer other.model does not exist"):
        found_with(tokenizer="other.model", train=())
    loaded.place = tmp_path / "runs" / "a" / "checkpoints" / "step-00000006"
    loaded.place.mkdir(parents=True)
    assert found_with(tokenizer="other.model", train=()) == 512
    assert loaded.remarks == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x " * 300], "prompt 1 has 3"),
        (["a", "\udcff"], "prompt 2 ('\\udcff') holds bytes that are no UTF-8 text; give it as UTF-8"),
        (["a", "--max-new-tokens", "0"], "--max-new-tokens is 0, expected 1 or more"),
        (["a", "--temperature", "-1"], "--temperature is -1, expected 0 or more"),
        (["a", "--top-p", "0"], "--top-p is 0, expected more than 0 and at most 1"),
        (["a", "--tokenizer", "nowhere.model"], "tokenizer nowhere.model does not exist"),
        (["a", "--family", FAMILY], f"--family is {FAMILY}, expected that of checkpoint"),
    ],
)
def test_what_cannot_be_is_one_line(
    trained: Trained, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate([str(trained.folder / "fp32-zero2"), *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert told.err.startswith("error: ") and said in told.err


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate([str(tmp_path), "a"]) == 2
    assert "holds neither manifest.json nor published checkpoints" in capsys.readouterr().err


def test_damaged_masks_of_an_export_are_one_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, tmp_path / "model")
    masks = tmp_path / "model" / "masks.safetensors"
    masks.write_bytes(masks.read_bytes()[:40])
    assert generate([str(tmp_path / "model"), "a"]) == 2
    assert f"{masks} is damaged" in capsys.readouterr().err
    masks.unlink()
    assert generate([str(tmp_path / "model"), "a"]) == 0, "then it is a dense model"
    assert "no sparse layers" in capsys.readouterr().err
