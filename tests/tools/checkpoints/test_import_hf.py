"""import_hf: what comes in goes out again, sparse by magnitude, and training starts from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tokenizers
import torch
import yaml
from safetensors.torch import load_file, save_file

from pretrain.config import load_config
from pretrain.data.corpus import open_corpus
from tests.pretrain.programs import Program
from tests.pretrain.runs import settings
from tests.tools.checkpoints.models import VOCABULARY, load_hf, make_hf, newest, read_state, read_vectors
from tools import export_hf, import_hf
from tools.checkpoints.reader import Checkpoint

ROOT = Path(__file__).resolve().parents[3]


def import_(*arguments: Any) -> int:
    return import_hf.main([str(argument) for argument in arguments])


def there_and_back(source: Path, tmp_path: Path, *options: Any, dtype: str = "fp32") -> Any:
    """Import, export, and load with transformers."""
    tmp_path.mkdir(exist_ok=True)
    assert import_(source, tmp_path / "imported", *options) == 0
    assert export_hf.main([str(tmp_path / "imported"), str(tmp_path / "exported"), "--dtype", dtype]) == 0
    return load_hf(tmp_path / "exported")


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {}),
        (torch.float32, {"num_key_value_heads": 3, "tie_word_embeddings": True}),
        (torch.float32, {"head_dim": 10, "max_shard_size": "12KB", "rms_norm_eps": 1e-5}),
        (torch.bfloat16, {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        (torch.float16, {}),
    ],
)
def test_dense_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    original = make_hf(tmp_path / "source", dtype, **changes)
    short = "bf16" if dtype == torch.bfloat16 else "fp32"
    back = there_and_back(tmp_path / "source", tmp_path, "--density", 1, dtype=short)
    before, after = original.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight.float(), after[name].float()), name
        assert after[name].dtype == (torch.bfloat16 if short == "bf16" else torch.float32)
    same = ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "vocab_size")
    assert all(getattr(original.config, key) == getattr(back.config, key) for key in same)
    tokens = torch.randint(VOCABULARY, (2, 32))
    with torch.no_grad():
        assert torch.equal(load_hf(tmp_path / "source").float()(tokens).logits, back.float()(tokens).logits)


@pytest.mark.parametrize(
    "options",
    [
        ["--density", 0.3],
        ["--density", 0.25, "--block", 2, 3, "--balance", "never"],
        ["--density", 0.3, "--distribution", "erk"],
    ],
)
def test_sparse_keeps_the_largest_bit_for_bit(tmp_path: Path, options: list[Any]) -> None:
    original = make_hf(tmp_path / "source").state_dict()
    back = there_and_back(tmp_path / "source", tmp_path, *options).state_dict()
    r, c = options[3:5] if "--block" in options else (1, 1)
    shares = []
    for name, weight in original.items():
        if "_proj" not in name:
            assert torch.equal(weight, back[name]), name
            continue
        transposed = "o_proj" in name or "down_proj" in name
        canonical, kept = (weight.t(), back[name].t()) if transposed else (weight, back[name])
        tiles = canonical.unfold(0, r, r).unfold(1, c, c).reshape(-1, r * c)
        kept = kept.unfold(0, r, r).unfold(1, c, c).reshape(-1, r * c)
        active = (kept != 0).all(1)
        assert torch.equal(kept[active], tiles[active]) and (kept[~active] == 0).all()
        assert tiles[active].abs().sum(1).min() >= tiles[~active].abs().sum(1).max()
        shares.append(active.float().mean().item())
        if "erk" not in options:
            assert active.sum() == round(options[1] * active.numel())
    assert ("erk" in options) == (max(shares) - min(shares) > 0.05)


def test_permuted_features_come_back_in_their_places(tmp_path: Path) -> None:
    original = make_hf(tmp_path / "source", num_attention_heads=4, num_key_value_heads=2).state_dict()
    shape = ["--block", 3, 2, "--permute", "both", "--ranges", 2]
    for density in (1, 0.5):
        back = there_and_back(tmp_path / "source", tmp_path / str(density), "--density", density, *shape).state_dict()
        for name, weight in original.items():
            kept = back[name] != 0
            assert torch.equal(back[name], weight * kept), name
            assert (
                kept.all()
                if density == 1 or "_proj" not in name
                else kept.float().mean() == pytest.approx(0.5, abs=0.05)
            )
        written = yaml.safe_load((tmp_path / str(density) / "imported" / "model.yaml").read_text())["sparsity"]
        assert written["permute"] == "both" and written["topology_ranges"] == 2
        facts = Checkpoint(tmp_path / str(density) / "imported").manifest
        assert len(facts["permutation"]) == 32
        origin = json.loads((tmp_path / str(density) / "exported" / "origin.json").read_text())
        assert origin["permutation"] == facts["permutation"]


def run_file(tmp_path: Path, corpus: str, **changes: Any) -> Path:
    """A run file on top of the imported model.yaml."""
    given = {**settings(corpus, tmp_path / "run", train__steps=3, **changes), "base": "imported/model.yaml"}
    del given["model"], given["sparsity"]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def pretrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "pretrain", *arguments]
    return subprocess.run(
        command, env={**environment, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_training_starts_from_it(tmp_path: Path, corpus: str, density: float) -> None:
    make_hf(tmp_path / "source", rope_parameters={"rope_type": "default", "rope_theta": 700.0}, rms_norm_eps=1e-5)
    model = there_and_back(tmp_path / "source", tmp_path, "--density", density)
    config = run_file(tmp_path, corpus, parallel__zero_stage=1)
    done = pretrain(str(config), f"checkpoint.resume={tmp_path / 'imported' / 'step-00000000'}")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    # The first step's loss is that of the imported model, on the samples that transformers is given here.
    data = open_corpus(corpus, 16, 0)
    batch = torch.tensor([data.sample(number).tolist() for number in range(8)])
    with torch.no_grad():
        logits = model(batch[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    assert rows[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    # From then on it is a checkpoint like any other, down to the names of its vectors.
    saved = newest(tmp_path / "run")
    lengths = {name: (v.numel(), v.dtype) for name, v in read_vectors(saved).items()}
    imported = read_vectors(tmp_path / "imported" / "step-00000000")
    assert {name: (v.numel(), v.dtype) for name, v in imported.items()} == lengths
    assert read_state(saved).keys() <= read_state(tmp_path / "imported" / "step-00000000").keys()
    assert all((v == 0).all() for name, v in imported.items() if "/" in name)
    assert read_state(saved)["data_fingerprint"] == data.fingerprint


def test_any_layout_starts_from_a_sparse_import(tmp_path: Path, corpus: str) -> None:
    """Two ranks under ZeRO-3, and two halves of each layer, whose numbers of active weights differ."""
    make_hf(tmp_path / "source", vocab_size=VOCABULARY + 1, num_attention_heads=4, num_key_value_heads=2)
    assert import_(tmp_path / "source", tmp_path / "imported", "--density", 0.3) == 0
    losses = {}
    for name, ranks, parallel in (("one", 1, {}), ("data", 2, {"zero_stage": 3}), ("tensor", 2, {"tensor": 2})):
        (tmp_path / name).mkdir()
        file = run_file(tmp_path, corpus, train__output_dir=str(tmp_path / name / "run"))
        resume = f"checkpoint.resume={tmp_path / 'imported' / 'step-00000000'}"
        changes = [f"parallel.{key}={value}" for key, value in parallel.items()]
        with Program(tmp_path / name / "screen", ranks, [str(file), resume, *changes]) as program:
            assert program.wait() == [0] * ranks, program.errors()
        rows = (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(row)["loss"] for row in rows]
    assert len(losses["one"]) == 3 and losses["one"][0] > 1
    assert losses["data"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["tensor"] == pytest.approx(losses["one"], rel=1e-5)


def test_any_optimizer_starts_from_it(tmp_path: Path, corpus: str) -> None:
    make_hf(tmp_path / "source")
    assert import_(tmp_path / "source", tmp_path / "imported", "--density", 0.3) == 0
    config = run_file(tmp_path, corpus)
    begun = f"checkpoint.resume={tmp_path / 'imported' / 'step-00000000'}"
    done = pretrain(str(config), begun, "optimizer.name=lion", "train.stop_at=2")
    assert done.returncode == 0, done.stderr
    assert "step-00000000 is of another optimizer, before its first step: this run's begins anew" in done.stdout
    states = {name.partition("/")[2] for name in read_vectors(newest(tmp_path / "run")) if "/" in name}
    assert states == {"exp_avg", "birth"}
    done = pretrain(str(config), begun, "optimizer.name=lion")  # in its own folder it goes on
    assert done.returncode == 0 and "of another optimizer" not in done.stdout, done.stderr


def test_another_model_cannot_take_it(tmp_path: Path, corpus: str) -> None:
    make_hf(tmp_path / "source")
    assert import_(tmp_path / "source", tmp_path / "imported", "--density", 0.25, "--block", 2, 3) == 0
    config = run_file(tmp_path, corpus)
    resume = f"checkpoint.resume={tmp_path / 'imported' / 'step-00000000'}"
    done = pretrain(str(config), resume, "model.rope_theta=700", "sparsity.block=[1,6]")  # of equal sizes
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert "model.rope_theta is 700.0, expected 10000.0" in errors[0]
    assert "sparsity.block is [1, 6], expected [2, 3]" in errors[0]


def test_model_yaml_is_a_base_that_says_no_more_than_needed(tmp_path: Path, corpus: str) -> None:
    make_hf(tmp_path / "source")
    a_tokenizer_json(tmp_path / "source" / "tokenizer.json")
    out = tmp_path / "imported"
    assert import_(tmp_path / "source", out, "--density", 0.25, "--block", 1, 4, "--method", "rigl") == 0
    sections = yaml.safe_load((out / "model.yaml").read_text())
    assert sections["sparsity"] == {"method": "rigl", "density": 0.25, "block": [1, 4], "distribution": "uniform"}
    assert sections["data"] == {"tokenizer": str(out / "tokenizer.json")}
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "source" / "tokenizer.json").read_bytes()
    config = load_config(run_file(tmp_path, corpus))
    assert config.sparsity.growth == "gradient" and config.model.num_key_value_heads == 1
    assert config.data.tokenizer == str(out / "tokenizer.json")


def a_tokenizer_json(path: Path) -> None:
    """A tokenizer of bytes, in Hugging Face's format."""
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "</s>": 1}, merges=[])).save(str(path))


def test_a_name_on_the_hub_is_downloaded(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is played by a folder; only files that match the patterns asked for arrive."""
    make_hf(tmp_path / "hub", max_shard_size="12KB")
    shutil.copyfile(model, tmp_path / "hub" / "tokenizer.model")
    for name in ("pytorch_model.bin", "README.md"):
        (tmp_path / "hub" / name).write_text(name)

    def snapshot_download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repo, revision) == ("someone/llama", "main")
        files = [path.name for path in (tmp_path / "hub").iterdir()]
        (tmp_path / "cache").mkdir()
        for name in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            shutil.copyfile(tmp_path / "hub" / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert import_("someone/llama", tmp_path / "imported", "--density", 1, "--revision", "main") == 0
    assert (tmp_path / "imported" / "tokenizer.model").read_bytes() == Path(model).read_bytes()
    assert not list((tmp_path / "cache").glob("*.bin")) and not (tmp_path / "cache" / "README.md").exists()


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def reshape_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(24, 36)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-8])


def old_format(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


MISTAKES: list[tuple[Any, list[Any], str]] = [
    (lambda f: change_config(f, model_type="mistral"), [], "has model_type 'mistral', expected 'llama'"),
    (lambda f: change_config(f, rope_parameters={"rope_type": "linear", "factor": 2.0}), [], "scales its rotary"),
    (lambda f: change_config(f, attention_bias=True), [], "model.attention_bias is true"),
    (lambda f: change_config(f, quantization_config={"bits": 4}), [], "dequantize the model first"),
    (lambda f: change_config(f, hidden_size="many"), [], "refused by transformers"),
    (lambda f: change_config(f, max_position_embeddings={}), [], "expected int, got dict"),
    (lambda f: change_config(f, head_dim={}), [], "doesn't match any type in (int, null)"),
    (lambda f: (f / "config.json").write_text("{"), [], "config.json cannot be read"),
    (lambda f: (f / "config.json").write_text("1e3"), [], "config.json holds no object but '1000.0'"),
    (drop_weight, [], "model.norm.weight is missing"),
    (reshape_weight, [], "model.layers.1.mlp.up_proj.weight is F32 [24, 36], expected (36, 24)"),
    (damage_weights, [], "model.safetensors is damaged"),
    (old_format, [], "pytorch_model.bin is of an older format"),
    (lambda f: None, ["--density", "0"], "error: density is 0.0"),
    (lambda f: None, ["--block", "5", "1"], "which does not divide"),
    (lambda f: None, ["--method", "dense"], "--method is dense with --density 0.5"),
]


@pytest.mark.parametrize(("mistake", "options", "said"), MISTAKES)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: Any, options: list[Any], said: str
) -> None:
    make_hf(tmp_path / "source")
    mistake(tmp_path / "source")
    capsys.readouterr()
    assert import_(tmp_path / "source", tmp_path / "imported", "--density", 0.5, *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("name", "said"), [("./nowhere", "model folder ./nowhere does not exist"), ("no-one/none", "Hugging Face hub")]
)
def test_a_model_that_cannot_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert import_(name, tmp_path / "imported", "--density", 1) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]


def test_an_import_is_not_overwritten_by_accident(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_hf(tmp_path / "source")
    assert import_(tmp_path / "source", tmp_path / "imported", "--density", 1) == 0
    assert import_(tmp_path / "source", tmp_path / "imported", "--density", 0.5) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert read_state(tmp_path / "imported" / "step-00000000")["config"]["sparsity"]["density"] == 1.0
    assert import_(tmp_path / "source", tmp_path / "imported", "--density", 0.5, "--overwrite") == 0
    assert read_state(tmp_path / "imported" / "step-00000000")["config"]["sparsity"]["density"] == 0.5
    # A model is not replaced by its own import.
    assert import_(tmp_path / "source", tmp_path / "source", "--density", 1, "--overwrite") == 2
    assert "config.json, which this tool did not write" in capsys.readouterr().err
