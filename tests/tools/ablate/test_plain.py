"""Cells in plain torch: peers train by their own packages, and what is held is counted from live tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.data.corpus import open_corpus
from pretrain.data_specs import training_spec
from pretrain.errors import DataError
from pretrain.first_masks import first_masks
from smet import MaskBank, SparseLinear, sparse_layers
from tests.tools.ablate import matrices
from tools.ablate import peers, plain
from tools.ablate.live import bytes_of, layer_flops
from tools.ablate.matrix import Cell, load_matrix

METHODS = {
    "dense": {"method": "dense"},
    "SMET": {"method": "smet"},
    "8-bit": {"method": "dense", "peer": {"name": "adamw8bit"}},
    "8-bit, static": {"method": "static", "peer": {"name": "adamw8bit"}},
    "GaLore": {"method": "dense", "peer": {"name": "galore", "rank": 6}},
    "APOLLO": {"method": "dense", "peer": {"name": "apollo", "rank": 6}},
    "then dense": {"method": "static", "then_dense": 0.75},
    "GMP": {"method": "gmp", "update_interval": 2},
    "SNIP": {"method": "static", "mask_init": "snip"},
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    folder = tmp_path_factory.mktemp("plain")
    group = {"sizes": ["tiny"], "methods": list(METHODS), "densities": [0.25], "seeds": [0]}
    matrix = load_matrix(matrices.write(folder, engine="torch", methods=METHODS, cells=[group]))
    return {cell.method: cell for cell in matrix.cells}


def trained(cell: Cell, steps: int = 20, precision: str = "bf16") -> dict[str, Any]:
    config = cell.config(Path("unused"))
    config.train.steps, config.train.precision = steps, precision
    assert cell.plain is not None
    found = plain.run(config, cell.plain.get("peer"), then_dense=cell.plain.get("then_dense"))
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["dense", "SMET", "GaLore", "APOLLO"])
def test_every_way_to_train_learns(cells: dict[str, Cell], name: str) -> None:
    found = trained(cells[name])
    assert found["steps"] == 20 and found["loss_curve"][-1][0] == 20
    assert found["validation_loss"] < found["loss_curve"][0][1] - 0.1
    assert found["bytes"]["total"] == sum(value for key, value in found["bytes"].items() if key != "total")
    assert found["topology_updates"] == (3 if name == "SMET" else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(METHODS))
def test_every_way_to_train_learns_on_a_gpu(cells: dict[str, Cell], name: str) -> None:
    config = cells[name].config(Path("unused"))
    config.train.device, config.train.precision = "cuda", "bf16"
    assert cells[name].plain is not None
    found = plain.run(config, cells[name].plain.get("peer"))
    assert found is not None and found["validation_loss"] < found["loss_curve"][0][1] - 0.1
    assert found["bytes"] == trained(cells[name], steps=2)["bytes"]


@pytest.mark.slow
def test_eight_bits_learn(cells: dict[str, Cell]) -> None:
    for name in ("8-bit", "8-bit, static"):
        found = trained(cells[name], steps=6)
        assert found["validation_loss"] < found["loss_curve"][0][1]


def test_what_is_stored_of_a_matrix_decays_as_a_matrix_does(cells: dict[str, Cell]) -> None:
    config = cells["8-bit, static"].config(Path("unused"))
    config.optimizer.weight_decay = 0.1
    model = plain.build(config).model
    made: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(peers.PEERS, "adamw8bit", lambda groups, *_: made.extend(groups))  # type: ignore[arg-type]
        peers.optimizer_of(model, {"name": "adamw8bit"}, config)
    decays = {id(parameter): group["weight_decay"] for group in made for parameter in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.1 if name.endswith("values") or parameter.dim() > 1 else 0.0), name


def test_bytes_are_those_of_live_tensors(cells: dict[str, Cell]) -> None:
    dense, smet = (trained(cells[name], steps=2)["bytes"] for name in ("dense", "SMET"))
    count = dense["weights"] // 2
    assert dense == {"weights": 2 * count, "gradients": 2 * count, "state": 12 * count, "masks": 0, "total": 16 * count}
    active = smet["weights"] // 2
    layers = 4 * 24 * 24 + 3 * 24 * 36
    assert active == count - layers + layers // 4 and smet["masks"] >= layers // 8
    assert smet["state"] == 12 * active + layers // 4  # an age is one byte
    galore = trained(cells["GaLore"], steps=2)["bytes"]
    matrices_of = [(24, 24)] * 4 + [(24, 36)] * 3
    low = sum(2 * 2 * 6 * max(shape) + 2 * 6 * min(shape) for shape in matrices_of)
    assert galore["state"] == low + 4 * (count - layers)  # moments in rank 6, and the projectors


def test_flops_are_those_of_active_weights_and_the_head(cells: dict[str, Cell]) -> None:
    config = cells["SMET"].config(Path("unused"))
    found = layer_flops(plain.build(config).model, config.sparsity)
    layers = 4 * 24 * 24 + 3 * 24 * 36
    assert found == {"active_weights": layers // 4, "flops_per_token": 6 * (layers // 4 + 24 * matrices.VOCABULARY)}


def test_a_run_that_ends_dense_trains_every_weight_from_there_on(cells: dict[str, Cell]) -> None:
    found, layers = trained(cells["then dense"]), 4 * 24 * 24 + 3 * 24 * 36
    assert found["mean_density"] == 0.75 * 0.25 + 0.25 == found["active_weights"] / layers
    assert found["bytes"] == trained(cells["dense"], steps=2)["bytes"]
    assert found["validation_loss"] < found["loss_curve"][0][1] - 0.1
    config = cells["then dense"].config(Path("unused"))
    subject = plain.build(config)
    tokens = torch.randint(matrices.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    before = subject.loss(tokens)
    full = plain.filled(subject, config)
    assert full.loss(tokens) == pytest.approx(before, rel=1e-2) and full.density() == 1.0
    assert not any(isinstance(module, SparseLinear) for module in full.model.modules())


def test_the_mean_density_is_that_of_what_is_open(cells: dict[str, Cell]) -> None:
    found = trained(cells["GMP"])
    assert 0.25 < found["mean_density"] < 0.6 and trained(cells["SMET"], 2)["mean_density"] == pytest.approx(0.25, 0.01)


def test_masks_that_the_dense_model_chooses_are_those_of_the_program(cells: dict[str, Cell]) -> None:
    config = cells["SNIP"].config(Path("unused"))
    corpus = open_corpus(training_spec(config.data), config.data.seq_length, config.data.seed)
    expected = first_masks(config, plain.alone(config), corpus)
    assert expected is not None
    layers = sparse_layers(plain.build(config).model)
    assert layers.keys() == expected.keys()
    assert all(torch.equal(layer.mask, expected[name]) for name, layer in layers.items())


def test_a_run_that_diverges_ends_there(cells: dict[str, Cell]) -> None:
    config = cells["dense"].config(Path("unused"))
    config.optimizer.lr, config.optimizer.warmup_steps = 1e30, 0
    found = plain.run(config, None)
    assert found is not None and found["validation_loss"] is None and found["steps"] < 20


def test_shared_memory_counts_once() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert bytes_of(torch.nn.ModuleList([model, model]), optimizer, MaskBank(model)) == {
        "weights": 64, "gradients": 64, "state": 64, "masks": 0, "total": 192,
    }  # fmt: skip


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, cells: dict[str, Cell]) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError("no such thing")))
    with pytest.raises(
        DataError,
        match="galore_torch cannot be imported .no such thing.; pip install --no-deps --target .*peers galore-t",
    ):
        peers.optimizer_of(torch.nn.Linear(2, 2), {"name": "galore"}, cells["dense"].config(Path("unused")))
