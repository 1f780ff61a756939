"""Sparse models as the dense ones that they compute like, for those who have no ``smet``."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from smet.convert import carry_over, densify
from smet.experts import restack
from smet.hf.config import TAGS, outermost
from smet.linear import SparseLinear, sparse_layers
from smet.settings import REMEMBERED
from smet.sparse_file import AS_DENSE

M = TypeVar("M", bound=nn.Module)


def dense(model: M) -> M:
    """Replace the sparse layers of ``model``, in place, by what they were made of; inactive weights are exact zeros.

    ``save_pretrained`` then writes files that need no ``smet``. Returns ``model``.
    """
    for name, layer in sparse_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _dense(layer))
    restack(model)
    for part in model.modules():
        vars(part).pop(REMEMBERED, None)
    for part in outermost(model):
        for key in ("quantization_config", AS_DENSE):
            with suppress(AttributeError):
                delattr(part.config, key)
        part.model_tags = [tag for tag in part.model_tags or [] if tag not in TAGS] or None
    return model


def load_dense(folder: str, kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """The sparse model in ``folder``, or of that name on the hub, with plain linear layers.

    ``kind.from_pretrained(folder, dense=True)`` is the same, for files whose ``config.json`` has the key ``dense``;
    the first such files do not.

    Args:
        folder: what ``from_pretrained`` takes.
        kind: whose ``from_pretrained`` it is.
        options: more for it.
    """
    return dense(kind.from_pretrained(folder, **options))


def _dense(layer: SparseLinear) -> nn.Module:
    linear = densify(layer)
    if "nf" not in vars(layer):
        return linear
    with torch.device("meta"):
        turned = Conv1D(layer.out_features, layer.in_features)
    turned.weight = nn.Parameter(linear.weight.detach().t().contiguous(), linear.weight.requires_grad)
    turned.bias = linear.bias
    carry_over(linear, turned)
    return turned
