"""Masks of an export that somebody else wrote: one line where they are none of the weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pretrain.errors import CheckpointError
from smet.mask import pack
from tools.checkpoints.layers import SavedWeight
from tools.inference.model import Masks

WEIGHT = SavedWeight(name="a.weight", shape=(4, 8), vector="a.weight", layer=None)
MATRIX = torch.zeros(4, 8)
MATRIX[:2, :4] = 1.0
BITS = pack(torch.tensor([True, False, False, False]))


def masks(folder: Path, **changes: Any) -> Masks:
    facts = {"block": [2, 4], "transposed": False, **changes.pop("facts", {})}
    tensors = {"a": BITS, "other": BITS.clone(), **changes}
    layers = json.dumps({"a": facts})
    save_file({k: t for k, t in tensors.items() if t is not None}, folder / "masks.safetensors", {"layers": layers})
    return Masks(folder, {"a.weight": "a.weight"})


def test_a_mask_of_the_weight_is_a_layer(tmp_path: Path) -> None:
    layer = masks(tmp_path).layer(WEIGHT, lambda _: MATRIX)
    assert layer is not None and torch.equal(layer.dense_weight(), MATRIX) and layer.density == 0.25


@pytest.mark.parametrize(
    "changes",
    [
        {"a": None}, {"a": BITS.float()}, {"a": pack(torch.ones(8, dtype=torch.bool))}, {"a.inputs": torch.zeros(8)},
        *({"facts": {"block": block}} for block in (
            [float("inf"), 1], [float("nan"), 1], [-2, -4], [-2, 4], [0, 4], [3, 4], [10**400, 1], [2], {}, None, "x",
        )),
    ],
)  # fmt: skip
def test_one_that_is_none_of_it_is_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="masks.safetensors: the mask of a is none of a weight of 4 x 8"):
        masks(tmp_path, **changes).layer(WEIGHT, lambda _: MATRIX)
