"""The one list of weights says what a model that is really built holds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.config import load_config
from pretrain.errors import ConfigError
from pretrain.models import family_of, inventory_of
from pretrain.models.inventory import Kind, Role
from pretrain.models.parts import DENSE

ROOT = Path(__file__).parents[3]
RUNS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "clusters").glob("*.yaml")])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_names_and_shapes_are_those_of_the_built_model_in_order(path: Path, tied: bool) -> None:
    model = replace(load_config(path).model, tie_word_embeddings=tied)  # type: ignore[call-arg]
    family, inventory = family_of(model), inventory_of(model)
    with torch.device("meta"):
        built = family.model.Model(model)
    found = [(name, tuple(parameter.shape)) for name, parameter in built.named_parameters()]
    assert [(weight.name, weight.shape) for weight in inventory.weights] == found
    assert sum(weight.numel for weight in inventory.weights) == sum(p.numel() for p in built.parameters())
    linears = [(n, (m.out_features, m.in_features)) for n, m in built.named_modules() if isinstance(m, nn.Linear)]
    assert list(inventory.linears()) == linears
    assert [block.name for block in inventory.blocks] == [name for name, _ in family.model.blocks(model, DENSE, False)]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_roles_of_a_llama(path: Path) -> None:
    inventory = inventory_of(load_config(path).model)
    for weight in inventory.weights:
        last = weight.module.rpartition(".")[2]
        expected = {"o_proj": Role.ROW, "down_proj": Role.ROW, "embed_tokens": Role.EMBEDDING, "lm_head": Role.HEAD}
        assert weight.role is (Role.SCALE if "norm" in last else expected.get(last, Role.COLUMN))
        assert inventory.role(f"{weight.module}.values") is weight.role, "active values have their weight's role"
    kinds = [block.kind for block in inventory.blocks]
    assert kinds == [Kind.EMBEDDING, *[Kind.LAYER] * inventory.shape.layers, Kind.NORM, Kind.HEAD]


def test_settings_and_inventory_need_no_torch() -> None:
    program = (
        "import sys; from pretrain.config import load_config; from pretrain.models import inventory_of;"
        f"inventory = inventory_of(load_config({str(RUNS[0])!r}).model); assert len(inventory.weights) > 9;"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'deepspeed')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_name_that_no_weight_has() -> None:
    said = "mlp.side_proj.weight, which the inventory of model.family 'llama' does not list .did you mean '.*mlp.*proj"
    with pytest.raises(ConfigError, match=said):
        inventory_of(load_config(RUNS[0]).model).role("model.layers.0.mlp.side_proj.weight")
