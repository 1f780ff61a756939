"""Other people's ways to train in little memory, by their own packages and at the settings that those recommend."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretrain.config import RunConfig
from pretrain.errors import DataError, nearest
from smet.fields import shown
from smet.linear import sparse_layers

Groups = list[dict[str, Any]]
Made = Callable[[Groups, Mapping[str, Any], RunConfig], torch.optim.Optimizer]


def optimizer_of(model: nn.Module, peer: Mapping[str, Any], config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of a peer over a dense model; one of ``OF_ANY`` also over a sparse one whose masks stay.

    Args:
        peer: ``name``, and what ``OPTIONS`` lists for it.

    Raises:
        DataError: its package is not installed.
    """
    values = {id(layer.values) for layer in sparse_layers(model).values()}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        projected = id(parameter) in values or _is_projected(name, parameter)
        (matrices if projected else others).append(parameter)
    options = {**OPTIONS[peer["name"]], **{key: value for key, value in peer.items() if key != "name"}}
    return PEERS[peer["name"]](_decayed([{"params": matrices}, {"params": others}], values, config), options, config)


def problems(peer: Any, method: Any) -> list[str]:
    """What is wrong with the entry ``peer`` of a method of ``smet``."""
    if not isinstance(peer, dict) or peer.get("name") not in list(PEERS):
        return [f"peer is {shown(peer)}, expected a mapping whose name is one of {', '.join(PEERS)}"]
    known = OPTIONS[peer["name"]]
    allowed = ("dense", "static") if peer["name"] in OF_ANY else ("dense",)
    found = []
    if method not in allowed:
        found.append(f"method is {method!r} with the peer {peer['name']}, expected {' or '.join(allowed)}")
    for key, value in peer.items():
        if key != "name" and key not in known:
            found.append(f"peer.{key} is not known{nearest(str(key), known)}")
        elif key != "name" and not _like(value, known[key]):
            found.append(f"peer.{key} is {shown(value)}, expected something like {known[key]!r}")
    return found


def _like(value: Any, default: Any) -> bool:
    """Whether it is of the kind of a default; numbers are positive."""
    if isinstance(default, bool | str):
        return type(value) is type(default)
    number = isinstance(value, int if isinstance(default, int) else int | float) and not isinstance(value, bool)
    return number and 0 < value < float("inf")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, in all groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # torchao compiles its step around it
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _is_projected(name: str, parameter: nn.Parameter) -> bool:
    """Matrices of attention and feed-forward, as GaLore's and APOLLO's own training scripts choose them."""
    return parameter.dim() == 2 and any(part in name for part in ("attn", "mlp"))


def _adamw8bit(groups: Groups, options: Mapping[str, Any], config: RunConfig) -> torch.optim.Optimizer:
    found = _imported("torchao.optim", "torchao")
    made: torch.optim.Optimizer = found.AdamW8bit(
        groups, lr=config.optimizer.lr, betas=_betas(config), eps=config.optimizer.eps,
        bf16_stochastic_round=options["stochastic_rounding"],
    )  # fmt: skip
    return made


def _galore(groups: Groups, options: Mapping[str, Any], config: RunConfig) -> torch.optim.Optimizer:
    found = _imported("galore_torch", "galore-torch bitsandbytes")
    groups[0].update(options)
    made: torch.optim.Optimizer = found.GaLoreAdamW(
        groups, lr=config.optimizer.lr, betas=_betas(config), no_deprecation_warning=True
    )
    return made


def _apollo(groups: Groups, options: Mapping[str, Any], config: RunConfig) -> torch.optim.Optimizer:
    found = _imported("apollo_torch", "apollo-torch bitsandbytes")
    front = options["scale_front"]
    groups[0].update({key: value for key, value in options.items() if key != "scale_front"})
    made: torch.optim.Optimizer = found.APOLLOAdamW(
        groups, lr=config.optimizer.lr, betas=_betas(config), scale_front=front
    )
    return made


def _decayed(groups: Groups, values: Collection[int], config: RunConfig) -> Groups:
    """Weight decay for matrices and what is stored of them, none for other vectors, as ``smet.parameter_groups``."""
    made = []
    for group in groups:
        for decay, wanted in ((config.optimizer.weight_decay, True), (0.0, False)):
            params = [one for one in group["params"] if (one.dim() > 1 or id(one) in values) == wanted]
            if params:
                made.append({**group, "params": params, "weight_decay": decay})
    return made


def _betas(config: RunConfig) -> tuple[float, float]:
    return config.optimizer.beta1, config.optimizer.beta2


def _imported(module: str, packages: str) -> Any:
    """``module``, also from the environment's folder ``peers``, where setup_env.sh --dev puts it."""
    place = str(Path(sys.prefix) / "peers")
    if place not in sys.path:
        sys.path.append(place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{module} cannot be imported ({error}); pip install --no-deps --target {place} {packages}"
        ) from None


PEERS: Mapping[str, Made] = {"adamw8bit": _adamw8bit, "galore": _galore, "apollo": _apollo}
OF_ANY = ("adamw8bit",)
"""Those that take vectors as well as matrices."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "adamw8bit": {"stochastic_rounding": True},
    "galore": {"rank": 32, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"},
    "apollo": {
        "rank": 32, "proj": "random", "scale_type": "channel", "scale": 1.0, "update_proj_gap": 200,
        "proj_type": "std", "scale_front": False,
    },
}  # fmt: skip
"""Defaults: those of the READMEs of torchao, GaLore and APOLLO, at a rank of a quarter of 128 features."""
