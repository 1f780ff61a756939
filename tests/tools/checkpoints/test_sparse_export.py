"""export_hf --sparse: what transformers and our tools load is the dense export, whatever layout saved it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import smet
import smet.hf
from pretrain.callbacks.checkpointing import CheckpointCallback
from pretrain.config import config_from_dict
from pretrain.run import prepared
from tests.distributed import run_ranks
from tests.pages import blocks
from tests.pretrain.runs import layout_of
from tests.tools.checkpoints.models import jobs, newest, read_state, read_vectors
from tests.tools.checkpoints.test_export_hf import one_error
from tools import export_hf, import_hf
from tools.inference import harness
from tools.inference.model import load

NAMES = ["grouped", "tied", "blocks", "partly", "dense", "tensor", "permuted"]


def export(*arguments: Any) -> None:
    assert export_hf.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run, dense and sparse."""
    folder = tmp_path_factory.mktemp("exported")
    for name in NAMES:
        export(newest(runs / name), folder / name / "dense")
        export(newest(runs / name), folder / name / "sparse", "--sparse")
    return folder


def load_hf(folder: Path, **options: Any) -> Any:
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model


def logits(model: Any) -> torch.Tensor:
    tokens = torch.randint(97, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(tokens)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_gives_the_logits_of_the_dense_export(
    exported: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMET_COMPUTE", "dense")
    sparse, dense = load_hf(exported / name / "sparse"), load_hf(exported / name / "dense")
    assert len(smet.sparse_layers(sparse)) == {"dense": 0, "partly": 13, "tensor": 13}.get(name, 14)
    assert all(not layer.is_full for layer in smet.sparse_layers(sparse).values())
    if name == "permuted":
        torch.testing.assert_close(logits(sparse), logits(dense))
    else:
        assert torch.equal(logits(sparse), logits(dense))
    plain = smet.hf.dense(sparse)
    assert all(torch.equal(weight, dense.state_dict()[key]) for key, weight in plain.state_dict().items())
    assert torch.equal(logits(plain), logits(dense))


def test_everything_lies_beside_it(exported: Path) -> None:
    folder = exported / "blocks" / "sparse"
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
        "origin.json",
    }  # fmt: skip
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["sparse"] is True and origin["files"] == sorted(files - {"origin.json"})
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and f"{origin['parameters']:,} parameters" in card
    held = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert held["quant_method"] == "smet" and held["settings"]["block"] == [2, 3]
    sizes = [sum(t.nbytes for t in load_file(exported / "blocks" / kind / "model.safetensors").values()) for kind in
             ("sparse", "dense")]  # fmt: skip
    assert sizes[0] < 0.6 * sizes[1], "embedding and head are the larger part of this model"


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_reader_gives_the_dense_export(exported: Path, name: str, tmp_path: Path) -> None:
    reader: dict[str, Any] = {}
    code = blocks("docs/sparse-format.md", "python")[-1]
    assert len(code.splitlines()) <= 30
    exec(code, reader)
    expected = load_file(exported / name / "dense" / "model.safetensors")
    found = reader["read"](exported / name / "sparse")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key].numpy()) for key in expected)


def test_the_pages_reader_reads_bf16_in_several_files(runs: Path, tmp_path: Path) -> None:
    reader: dict[str, Any] = {}
    exec(blocks("docs/sparse-format.md", "python")[-1], reader)
    export(newest(runs / "tensor"), tmp_path / "dense", "--dtype", "bf16")
    export(newest(runs / "tensor"), tmp_path / "sparse", "--dtype", "bf16", "--sparse", "--max-shard-size", "4k")
    assert len(list((tmp_path / "sparse").glob("model-*"))) > 3
    expected = load_file(tmp_path / "dense" / "model.safetensors")
    found = reader["read"](tmp_path / "sparse")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key].float().numpy()) for key in expected)
    assert torch.equal(logits(load_hf(tmp_path / "sparse")), logits(load_hf(tmp_path / "dense")))


def save_again(jobs_of: list[dict[str, Any]]) -> None:
    """Load what each job resumes from, and save it at the job's layout."""
    for job in jobs_of:
        config = config_from_dict(job)
        with prepared(config, layout_of(config)) as trainer:
            saver = next(one for one in trainer.callbacks if isinstance(one, CheckpointCallback))
            saver.save(trainer, wait=True)


def test_exports_of_one_state_are_the_same_bytes_at_any_layout(
    runs: Path, corpus: str, exported: Path, tmp_path: Path
) -> None:
    again = []
    layouts = {"zero3": {"zero_stage": 3}, "tp2": {"tensor": 2}, "pp2": {"pipeline": 2, "zero_stage": 1}}
    for name, parallel in layouts.items():
        job = jobs(corpus, tmp_path)["tensor"]
        job["train"]["output_dir"] = str(tmp_path / name)
        job["checkpoint"]["resume"] = str(newest(runs / "tensor"))
        again.append({**job, "parallel": parallel})
    run_ranks(save_again, 2, again)
    for kind in ("dense", "sparse"):
        expected = exported / "tensor" / kind
        for name in layouts:
            saved = newest(tmp_path / name)
            layout = json.loads((saved / "manifest.json").read_text())["layout"]
            assert {key: layout[key] for key in layouts[name]} == layouts[name]
            export(saved, tmp_path / name / kind, *(["--sparse"] if kind == "sparse" else []))
            files = {path.name for path in expected.iterdir()}
            assert files == {path.name for path in (tmp_path / name / kind).iterdir()}
            for file in files - {"origin.json"}:  # which names the checkpoint
                assert (expected / file).read_bytes() == (tmp_path / name / kind / file).read_bytes(), (name, file)


@pytest.mark.parametrize("name", ["grouped", "permuted"])
def test_our_tools_read_it_as_the_checkpoint(
    runs: Path, exported: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = load(newest(runs / name)), load(exported / name / "sparse")
    assert theirs.sparse.keys() == ours.sparse.keys() and len(theirs.sparse) == 14
    assert torch.equal(logits(theirs.model), logits(ours.model))
    block = [
        str(side) for side in json.loads(json.dumps(read_state(newest(runs / name))["config"]["sparsity"]["block"]))
    ]
    same = ["--density", "0.29", "--block", *block, "--balance", "never"]
    for kind in ("dense", "sparse"):
        assert import_hf.main([str(exported / name / kind), str(tmp_path / kind), *same]) == 0
    one, other = (read_vectors(tmp_path / kind / "step-00000000") for kind in ("dense", "sparse"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    held = load_file(exported / name / "sparse" / "model.safetensors")
    held["model.layers.0.mlp.up_proj.values"][3] = float("nan")
    for damage, told in (
        ({}, "1 of "),
        ({"model.layers.0.mlp.up_proj.mask": torch.zeros(1, dtype=torch.uint8)}, "up_proj.mask is U8 [1], expected"),
        ({"model.layers.0.mlp.up_proj.more": torch.zeros(1)}, "no place for: model.layers.0.mlp.up_proj.more"),
    ):
        (tmp_path / "bad").mkdir(exist_ok=True)
        for file in ("config.json",):
            (tmp_path / "bad" / file).write_bytes((exported / name / "sparse" / file).read_bytes())
        save_file({**held, **damage}, tmp_path / "bad" / "model.safetensors", {"format": "pt"})
        capsys.readouterr()
        assert import_hf.main([str(tmp_path / "bad"), str(tmp_path / "none"), *same]) == 2
        assert told in one_error(capsys)


def test_the_harness_is_told_of_sparse_models(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return type("Done", (), {"returncode": 3})

    monkeypatch.setattr(harness.subprocess, "run", run)
    options: Any = type("Options", (), {"precision": None, "device": "cpu", "lm_eval": "a"})
    for kind in ("dense", "sparse"):
        with pytest.raises(smet.UserError, match="exit code 3"):
            harness._ask(exported / "grouped" / kind, tmp_path, options, [])
    dense, sparse = asked
    assert dense[1:3] == ["-m", "lm_eval"] and sparse[1] == "-c" and sparse[2].startswith("import smet.hf, runpy;")
    assert [word.replace("sparse", "dense") for word in sparse[3:]] == dense[3:]
