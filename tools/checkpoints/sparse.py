"""A checkpoint in the sparse format of docs/sparse-format.md: its tensors, one at a time, and what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.files import write_synced
from smet import loading, sparse_file
from smet.sparse_file import MASK, VALUES

from .layers import SavedWeight
from .reader import Checkpoint
from .stream import Entry


def entries(checkpoint: Checkpoint, dtype: torch.dtype) -> list[Entry]:
    """The tensors of the files: those of sparse layers, and all other weights as they are."""
    found = []
    for weight in checkpoint.weights:
        name = checkpoint.family.hf.file_name(weight.name)
        if weight.has_mask:
            found += _of_layer(checkpoint, weight, name.removesuffix(".weight"), dtype)
        else:
            found.append(Entry(name, weight.shape, dtype, partial(checkpoint.dense_weight, weight)))
    return found


def _of_layer(checkpoint: Checkpoint, weight: SavedWeight, name: str, dtype: torch.dtype) -> list[Entry]:
    spec = weight.layer
    assert spec is not None
    active = checkpoint.open_tiles(weight)
    found = [Entry(f"{name}.{VALUES}", (active * spec.grid.tile_size,), dtype, partial(_values, checkpoint, weight))]
    if active < spec.grid.tiles:
        found.append(
            Entry(f"{name}.{MASK}", (spec.grid.mask_bytes,), torch.uint8, partial(checkpoint.open_mask, weight))
        )
    orders = checkpoint.orders(weight)
    small = {loading.ORIENTATION: torch.tensor(spec.transposed), loading.BLOCK: torch.tensor(spec.grid.tile)}
    small |= {loading.SHAPE: torch.tensor(weight.shape)}
    if digest := orders.digest():
        small[loading.PERMUTATION] = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
    for side, order in zip(loading.SIDES, orders, strict=True):
        if order is not None:
            small[side] = order.features.to(torch.int32)
    return found + [
        Entry(f"{name}.{key}", tuple(one.shape), one.dtype, partial(_same, one)) for key, one in small.items()
    ]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _values(checkpoint: Checkpoint, weight: SavedWeight) -> Tensor:
    return checkpoint.sparse_layer(weight).values.detach()


def count(checkpoint: Checkpoint) -> int:
    """Number of sparse layers."""
    return sum(weight.has_mask for weight in checkpoint.weights)


def description(checkpoint: Checkpoint) -> dict[str, Any]:
    """The ``quantization_config`` of ``config.json``."""
    return sparse_file.description(checkpoint.sparsity)


def write_beside(folder: Path, origin: Mapping[str, Any], tokens: Mapping[str, int | None]) -> None:
    """Write the model card and ``generation_config.json``, which say nothing of where the checkpoint was."""
    known = {key: number for key, number in tokens.items() if number is not None}
    write_synced(folder / "generation_config.json", json.dumps({"_from_model_config": True, **known}, indent=2) + "\n")
    write_synced(folder / "README.md", _CARD.format(**origin))


_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- smet
- sparse
---

# A sparse language model

{parameters:,} parameters, of which the sparse layers store {density:.4g} ({dtype}), after {step:,} training steps.
It was trained by SMET (arXiv 2606.00888) and is stored as active weights and packed masks, in the format of the page
`sparse-format.md` of SMET's documentation.

```python
import smet.hf  # pip install 'smet-train[hf]'
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(".")
```

`smet.hf.load_dense(".")` gives the same model with plain linear layers; what `save_pretrained` writes of that one needs
no smet. Without smet installed, transformers refuses this folder: its layers have other shapes.
"""
