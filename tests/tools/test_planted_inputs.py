"""Code planted in corpora, tokenizers, datasets and run files never runs; each is refused by name, or is a reject."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from pretrain.__main__ import main as pretrain
from pretrain.config import load_config
from pretrain.data.corpus import open_corpus
from pretrain.data.indexed import HEADER, MAGIC
from pretrain.data.manifest import manifest_path
from pretrain.data.tokenizers import load_tokenizer
from pretrain.errors import ConfigError, DataError
from tests.damage import bombs, numpy_file, pickled, torch_file, yaml_tag
from tests.pretrain.attempts import corpus_with_manifest, write_run_file
from tests.tools.texts import make_documents
from tools import dataset, preprocess


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What planted code makes."""
    return tmp_path / "it-ran"


def contents(marker: Path, folder: Path) -> list[bytes]:
    """Code in every format that some library would run."""
    files = [pickled(marker), numpy_file(marker), torch_file(marker, folder / "archive").read_bytes()]
    return [*files, yaml_tag(marker).encode(), f"import os; os.system('touch {marker}')".encode()]


@pytest.mark.parametrize("name", ("x.model", "x.json"))
def test_tokenizers(tmp_path: Path, marker: Path, name: str) -> None:
    for content in [*contents(marker, tmp_path), b"[" * 100_000, b'{"version":' * 10_000]:
        (tmp_path / name).write_bytes(content)
        load_tokenizer.cache_clear()
        with pytest.raises(DataError, match=name):
            load_tokenizer(str(tmp_path / name))
    assert not marker.exists()


@pytest.mark.parametrize("suffix", ("idx", "bin", "json"))
def test_corpora(tmp_path: Path, marker: Path, suffix: str) -> None:
    prefix = corpus_with_manifest(tmp_path / "c")
    path = manifest_path(prefix) if suffix == "json" else Path(f"{prefix}.{suffix}")
    assert path.is_file()
    for content in contents(marker, tmp_path) + [b"[" * 100_000]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            open_corpus(prefix, 16, 0)
    assert not marker.exists()


def test_an_index_of_more_than_there_is(tmp_path: Path) -> None:
    prefix = corpus_with_manifest(tmp_path / "c")
    for sequences, boundaries in ((2**63, 1), (2**63 - 1, 2**63 - 1), (1, 2**62)):
        (tmp_path / "c.idx").write_bytes(MAGIC + struct.pack("<QBQQ", 1, 8, sequences, boundaries) + bytes(64))
        assert HEADER.size == len(MAGIC) + struct.calcsize("<QBQQ")
        with pytest.raises(DataError, match="c.idx"):
            open_corpus(prefix, 16, 0)


def run_preprocess(model: str, output: Path, *words: str) -> int:
    return preprocess.main([*words, "--tokenizer", model, "--output", str(output), "--workers", "1"])


@pytest.mark.parametrize("suffix", ("jsonl", "parquet", "jsonl.gz", "jsonl.zst", "txt", "npy", "pkl", "pt"))
def test_inputs(tmp_path: Path, marker: Path, model: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    for number, content in enumerate(contents(marker, tmp_path)):
        (tmp_path / f"in.{suffix}").write_bytes(content)
        code = run_preprocess(model, tmp_path / f"c{number}", "--input", str(tmp_path / f"in.{suffix}"))
        err = capsys.readouterr().err
        assert code in (0, 2) and "Traceback" not in err and (code == 0 or "error: " in err)
    assert not marker.exists()


def script(folder: Path, marker: Path) -> None:
    (folder / f"{folder.name}.py").write_text(f"import os; os.system('touch {marker}')")


def with_pickled_state(folder: Path, marker: Path) -> None:
    saved(folder, marker)
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_bytes(pickled(marker))


def saved(folder: Path, marker: Path) -> None:
    datasets.Dataset.from_dict({"text": make_documents(3)}).save_to_disk(folder)
    script(folder, marker)


def with_files_elsewhere(folder: Path, marker: Path) -> None:
    saved(folder, marker)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "planted.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "planted.arrow").write_bytes(pickled(marker))


@pytest.mark.parametrize("plant", (script, with_pickled_state, with_files_elsewhere))
def test_datasets_on_disk(
    tmp_path: Path, marker: Path, model: str, capsys: pytest.CaptureFixture[str], plant: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "set").mkdir()
    plant(tmp_path / "set", marker)
    assert run_preprocess(model, tmp_path / "c", "--dataset", str(tmp_path / "set"), "--split", "train") == 2
    err = capsys.readouterr().err
    assert "error: " in err and "Traceback" not in err and not marker.exists()


def test_a_document_is_shown_and_not_obeyed(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = {"text": "a\x1b[2J\x1b]0;owned\x07 b\u202e"}
    (tmp_path / "in.jsonl").write_text(json.dumps(document) + "\n")
    assert run_preprocess(model, tmp_path / "c", "--input", str(tmp_path / "in.jsonl")) == 0
    capsys.readouterr()
    assert dataset.main(["inspect", str(tmp_path / "c"), "--document", "0", "--tokenizer", model]) == 0
    out = capsys.readouterr().out
    assert "owned" in out and all(c.isprintable() or c in "\n\t" for c in out)


@pytest.mark.parametrize("where", ("value", "key", "whole", "base", "override"))
def test_run_files(tmp_path: Path, marker: Path, where: str) -> None:
    file = Path(write_run_file(tmp_path / "run.yaml", "corpus", tmp_path / "run"))
    text, overrides = file.read_text(), []
    if where == "value":
        text += f"deepspeed: {yaml_tag(marker)}\n"
    elif where == "key":
        text += f"? {yaml_tag(marker)}\n: 1\n"
    elif where == "whole":
        text = yaml_tag(marker)
    elif where == "base":
        (tmp_path / "base.yaml").write_text(f"model: {yaml_tag(marker)}\n")
        text = "base: base.yaml\n" + text
    else:
        overrides = [f"train.seed={yaml_tag(marker)}"]
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config(file, overrides)
    assert not marker.exists()


@pytest.mark.parametrize("bomb", bombs())
def test_run_files_that_stand_for_billions(tmp_path: Path, bomb: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(write_run_file(tmp_path / "run.yaml", "corpus", tmp_path / "run"))
    value = bombs()[bomb]
    file.write_text(file.read_text() + (value if bomb in ("aliases", "merges") else f"deepspeed: {{x: {value}}}\n"))
    assert pretrain([str(file), "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err and max(map(len, err.splitlines())) < 1000
