"""New run files: with a plan that fits, from options or answers, never in the place of another."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pytest

from pretrain.config import load_config
from pretrain.config.load import leaves
from pretrain.config.yaml_text import read_yaml
from pretrain.data.manifest import Manifest
from pretrain.plan import plan_rank
from tools.config.__main__ import main
from tools.config.schema import schema

GIVEN = ["--model", "9m", "--data", "data/text", "--gpus", "2", "--gpu", "H100"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def manifest(prefix: Path, tokens: int, vocabulary: int = 4096) -> str:
    Manifest(
        tokenizer_sha256="0" * 64,
        vocab_size=vocabulary,
        eos_id=1,
        dtype="uint16",
        documents=1,
        tokens=tokens,
        checksums={},
    ).write(prefix)
    return str(prefix)


def test_a_new_file_loads_fits_and_names_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    options = ["--tokens", "100M", "--validation", "data/other", "sparsity.density=0.1", "--json"]
    assert main(["new", str(path), *GIVEN, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    config = load_config(path)
    per_step = config.train.global_batch_size * config.data.seq_length
    assert per_step * (config.train.steps - 1) < 100e6 <= per_step * config.train.steps == report["budget"]["tokens"]
    assert config.sparsity.density == 0.1 and config.data.train[0].path == "data/text"
    assert plan_rank(config, 2).peak == report["layout"]["peak"] < 0.9 * 80e9
    assert 0 < config.checkpoint.interval < config.train.steps and config.evaluation.interval
    first, *others = path.read_text().splitlines()
    assert first == f"# yaml-language-server: $schema={Path('configs/schema.json').resolve()}"
    assert "Predicted, not measured" in others[1]
    jsonschema.Draft7Validator(schema()).validate(read_yaml(path))
    assert main(["new", str(path), *GIVEN]) == 2
    assert "is there already" in capsys.readouterr().err and load_config(path) == config


def test_a_preset_is_one_word_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, beta2 in (("measured", 0.95), ("paper", 0.999)):  # large sizes have a shorter memory than the paper's
        assert main(["new", str(tmp_path / f"{name}.yaml"), "--model", "3b", *GIVEN[2:], "--preset", name]) == 0
        assert load_config(tmp_path / f"{name}.yaml").optimizer.beta2 == beta2
    assert main(["new", str(tmp_path / "other.yaml"), *GIVEN, "--preset", "papers"]) == 2
    assert "--preset is 'papers', expected one of measured, paper (did you mean 'paper'?)" in capsys.readouterr().err
    assert not (tmp_path / "other.yaml").exists()


def test_the_corpus_decides_about_vocabulary_and_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = manifest(tmp_path / "text", tokens=1_000_000)
    given = [*GIVEN, "--data", prefix]
    (tmp_path / "text.idx").touch()
    assert main(["new", str(tmp_path / "run.yaml"), *given, "--data", f"{prefix}.bin"]) == 2
    assert f"and this is a file of the corpus {prefix}: leave out .bin" in capsys.readouterr().err
    assert main(["new", str(tmp_path / "run.yaml"), *given, "--tokens", "50M"]) == 0
    said = capsys.readouterr().out
    assert load_config(tmp_path / "run.yaml").model.vocab_size == 4096
    assert "model.vocab_size is 4096, as the corpus needs, instead of 32000" in said
    assert "warning: the corpus has 1 M tokens: 50" in said and "to start it: deepspeed --num_gpus 2" in said


def test_hours_give_the_steps_and_odd_numbers_of_gpus_a_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", str(tmp_path / "run.yaml"), *GIVEN, "--gpus", "3", "--hours", "0.5", "--tiles", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["budget"]["hours"] == pytest.approx(0.5, rel=0.01)
    config = load_config(tmp_path / "run.yaml")
    assert config.train.global_batch_size % 3 == 0 and min(config.sparsity.block) >= 16
    assert any("which 3 GPUs can share" in remark for remark in report["remarks"])


def test_what_overrides_say_stays_and_the_layout_is_searched_among_the_rest(tmp_path: Path) -> None:
    given = {
        "train.steps": 100, "optimizer.warmup_steps": 50, "evaluation.interval": 7, "checkpoint.interval": 9,
        "checkpoint.keep_every": 5, "parallel.zero_stage": 3, "train.micro_batch_size": 6,
        "train.global_batch_size": 480,
    }  # fmt: skip
    words = [f"{name}={value}" for name, value in given.items()]
    assert main(["new", str(tmp_path / "run.yaml"), *GIVEN, "--validation", "data/other", *words]) == 0
    assert dict(leaves(read_yaml(tmp_path / "run.yaml"))).items() >= given.items()
    other = ["data.validation=data/other", "train.steps=50"]
    assert main(["new", str(tmp_path / "other.yaml"), *GIVEN, *other]) == 0
    assert load_config(tmp_path / "other.yaml").evaluation.interval == 5
    assert "no validation corpus" not in (tmp_path / "other.yaml").read_text()
    short = ["train.steps=50", "checkpoint=null", "parallel=null"]  # the size's own warm-up takes 500
    assert main(["new", str(tmp_path / "short.yaml"), *GIVEN, *short]) == 0
    config = load_config(tmp_path / "short.yaml")
    assert (config.train.steps, config.optimizer.warmup_steps, config.checkpoint.interval) == (50, 5, 5)


def test_what_is_left_out_is_asked_for_until_it_is_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["10m", "9m", "data/text", "G100", "h100", "none", "2", "20M"]
    monkeypatch.setattr("sys.stdin", Terminal("\n".join(answers) + "\n"))
    assert main(["new", str(tmp_path / "run.yaml")]) == 0
    asked = capsys.readouterr().err
    assert asked.count("Model size (9m, 60m, ") == 2 and asked.count("Kind of GPU") == 2
    assert "expected one of A100" in asked and "'none' GPUs, expected a number" in asked
    config = load_config(tmp_path / "run.yaml")
    assert config.train.steps * config.train.global_batch_size * config.data.seq_length == pytest.approx(20e6, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--model, --data, --gpus, --gpu missing, and no terminal to ask on"),
        ([*GIVEN, "--model", "10m"], "--model is '10m', expected one of 9m, 60m"),
        ([*GIVEN, "--gpu", "H10"], "did you mean 'H100'"),
        ([*GIVEN, "--gpus", "0"], "'0' GPUs, expected a number of 1 or more"),
        ([*GIVEN, "--hours", "-1"], "--hours is -1"),
        ([*GIVEN, "--memory", "1GB"], "no layout of 2 GPUs fits"),
        ([*GIVEN, "train.stesp=3"], "did you mean 'steps'"),
        ([*GIVEN, "train=3", "optimizer=null"], "train is 3 (int), expected a mapping of keys"),
        ([*GIVEN, "--tokens", "1M", "train.steps=3"], "--tokens and train.steps both say how long the run is"),
        ([*GIVEN, "parallel.tensor=2", "train.micro_batch_size=5"], "GPUs with parallel.tensor=2 train.micro_batch_si"),
    ],
)
def test_refusals_leave_nothing_behind(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["new", str(tmp_path / "run.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and expected in error
    assert list(tmp_path.iterdir()) == []
