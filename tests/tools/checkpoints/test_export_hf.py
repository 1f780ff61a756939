"""export_hf: transformers computes what we compute, zeros stand where the masks say, and mistakes cost nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.tools.checkpoints.models import VOCABULARY, load_hf, newest, our_model, read_state, read_vectors
from tools import export_hf
from tools.checkpoints import stream
from tools.checkpoints.reader import Checkpoint

NAMES = ["grouped", "tied", "blocks", "partly", "dense", "tensor", "tensor-tied", "permuted", "pipeline", "adamw_8bit"]


def export(*arguments: Any) -> int:
    return export_hf.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for name in NAMES:
        assert export(newest(runs / name), folder / name) == 0
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_transformers_gives_our_logits(runs: Path, exported: Path, name: str) -> None:
    tokens = torch.randint(VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(1))
    theirs = load_hf(exported / name)
    with torch.no_grad():
        ours = our_model(newest(runs / name))(tokens)
        assert (ours - theirs(tokens).logits).abs().max() < 1e-4
        assert ours.std() > 0.01
        # The loss that the training engine itself computed when it saved.
        probe = read_state(newest(runs / name))["probe"]
        batch = torch.tensor([probe["tokens"]])
        logits = theirs(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits[0], batch[0, 1:])
    assert loss.item() == pytest.approx(probe["loss"], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stand_exactly_where_the_masks_say(runs: Path, exported: Path, name: str) -> None:
    weights = load_file(exported / name / "model.safetensors")
    vectors = read_vectors(newest(runs / name))
    described: dict[str, Any] = {}
    if (exported / name / "masks.safetensors").exists():
        with safe_open(exported / name / "masks.safetensors", framework="np") as file:
            described = json.loads(file.metadata()["layers"])
            held = set(file.keys())
            orders = {key for key in held if key.endswith((".inputs", ".outputs"))}
            assert set(described) == held - orders
            assert len(orders) == (2 * len(described) if name == "permuted" else 0)
            for layer, facts in described.items():
                active = blocks_of(file.get_tensor(layer), facts)
                weight = weights[f"{layer}.weight"].numpy()
                if orders:
                    outputs, inputs = (file.get_tensor(f"{layer}.{side}") for side in ("outputs", "inputs"))
                    weight = weight[outputs][:, inputs]
                tiles = tiles_of(weight, facts)
                assert (tiles[~active] == 0).all()
                assert active.sum() == facts["active"]
                values, births = (vectors[f"{layer}.values{key}"].numpy() for key in ("", "/birth"))
                assert (tiles[active].reshape(-1) == values).all()
                assert (births[values == 0] > 0).all()  # regrown at 0, and without a gradient since then
    assert len(described) == {"dense": 0, "partly": 13, "tensor": 13}.get(name, 14)
    for layer in {key.removesuffix(".weight") for key in weights} - set(described):
        assert (weights[f"{layer}.weight"] != 0).all()


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], odd: float
) -> None:
    whole = Checkpoint.vector

    def vector(self: Checkpoint, name: str) -> torch.Tensor:
        found = whole(self, name)
        if name == "model.layers.1.mlp.up_proj.values":
            found[3:5] = odd
        return found

    monkeypatch.setattr(Checkpoint, "vector", vector)
    assert export(newest(runs / "grouped"), tmp_path / "out") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "2 of" in told and "weights of model.layers.1.mlp.up_proj.weight are NaN or infinite" in told
    assert list(tmp_path.iterdir()) == []


def blocks_of(bits: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """A mask as a bool vector, by NumPy alone."""
    blocks = facts["rows"] * facts["cols"] // np.prod(facts["block"])
    assert not np.unpackbits(bits, bitorder="little")[blocks:].any()
    return np.unpackbits(bits, bitorder="little")[:blocks].astype(bool)


def tiles_of(weight: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """A weight (out, in) cut into its tiles in row-major order, by NumPy alone: (blocks, rows, columns)."""
    canonical = weight.T if facts["transposed"] else weight
    assert canonical.shape == (facts["rows"], facts["cols"])
    height, width = facts["block"]
    tiles = canonical.reshape(facts["rows"] // height, height, facts["cols"] // width, width)
    return tiles.swapaxes(1, 2).reshape(-1, height, width)


def test_a_tied_head_goes_by_the_embeddings_name(exported: Path) -> None:
    assert "lm_head.weight" not in load_file(exported / "tied" / "model.safetensors")
    assert "lm_head.weight" in load_file(exported / "grouped" / "model.safetensors")
    assert json.loads((exported / "tied" / "config.json").read_text())["tie_word_embeddings"] is True


def test_bf16_is_fp32_rounded(runs: Path, exported: Path, tmp_path: Path) -> None:
    assert export(runs / "grouped", tmp_path / "out", "--dtype", "bf16") == 0
    exact = load_file(exported / "grouped" / "model.safetensors")
    rounded = load_file(tmp_path / "out" / "model.safetensors")
    assert exact.keys() == rounded.keys()
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)
    assert load_hf(tmp_path / "out").dtype == torch.bfloat16


def test_several_files_hold_what_one_holds(runs: Path, exported: Path, tmp_path: Path) -> None:
    assert export(runs / "grouped", tmp_path / "out", "--max-shard-size", "12k") == 0
    files = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(files) > 3
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 12_000 for file in files)
    one, several = load_hf(exported / "grouped").state_dict(), load_hf(tmp_path / "out").state_dict()
    assert one.keys() == several.keys() and all(torch.equal(one[name], several[name]) for name in one)


def test_a_run_means_its_newest_checkpoint(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, source in enumerate([runs / "grouped", runs / "grouped" / "checkpoints", newest(runs / "grouped")]):
        assert export(source, tmp_path / str(number), "--json") == 0
        assert json.loads(capsys.readouterr().out)["step"] == 6
    older = runs / "grouped" / "checkpoints" / "step-00000003"
    assert export(older, tmp_path / "older", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["step"] == 3 and report["checkpoint"] == str(older)
    assert json.loads((tmp_path / "older" / "origin.json").read_text())["step"] == 3


def test_an_output_is_replaced_only_if_asked_and_only_an_export(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert export(runs / "grouped", out, "--max-shard-size", "12k") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert export(runs / "tied", out) == 2
    assert "--overwrite" in one_error(capsys)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "notes.txt").write_text("mine")
    assert export(runs / "tied", out, "--overwrite") == 2
    assert "notes.txt" in one_error(capsys)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert export(runs / "tied", out, "--overwrite") == 0
    assert load_hf(out).config.tie_word_embeddings
    assert not list(out.glob("model-*"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize("change", ["flip", "truncate", "remove"])
def test_nothing_is_made_of_a_damaged_checkpoint(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    shutil.copytree(runs / "grouped" / "checkpoints", tmp_path / "checkpoints")
    damaged = newest(tmp_path) / "__1_0.distcp"
    damage(damaged, change)
    assert export(tmp_path / "checkpoints", tmp_path / "out") == 2
    error = one_error(capsys)
    assert str(damaged) in error and "step-00000003" in error
    assert not (tmp_path / "out").exists()


def damage(path: Path, change: str) -> None:
    content = bytearray(path.read_bytes())
    if change == "remove":
        path.unlink()
    elif change == "truncate":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("what", ["missing", "a file", "another folder", "unpublished"])
def test_what_is_no_checkpoint_is_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = tmp_path / "step-00000006"
    if what == "a file":
        path.write_text("x")
    elif what == "another folder":
        path = tmp_path / "folder"
        path.mkdir()
    elif what == "unpublished":
        shutil.copytree(newest(runs / "grouped"), path)
        (path / "manifest.json").unlink()
    assert export(path, tmp_path / "out") == 2
    assert str(path) in one_error(capsys)
    assert not (tmp_path / "out").exists()


def test_an_export_that_breaks_off_leaves_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(stream, "write", full)
    assert export(runs / "grouped", tmp_path / "out") == 2
    assert "No space left" in one_error(capsys)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_noticed_before(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_hf, "free_bytes", lambda path: 1000)
    assert export(runs / "grouped", tmp_path / "out") == 2
    assert "1 kB free" in one_error(capsys)
    assert not list(tmp_path.iterdir())
