"""Whether model, optimizer, store and bank belong together: told at once, all of it, before the first step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from smet.agreement import differing
from smet.bank import MaskBank
from smet.compute import tiles
from smet.config import SmetConfig
from smet.errors import ConfigError
from smet.linear import SparseLinear
from smet.optim.aged import AgedOptimizer
from smet.optim.ages import Remedies
from smet.store import Fragment, ParameterStore

REMEDY = "make the optimizer over parameter_groups(model, config)"


def fragments_of(layers: Mapping[str, SparseLinear], store: ParameterStore) -> dict[str, Fragment]:
    """Each layer's fragment.

    Raises:
        ConfigError: ``store`` is no store, an optimizer does not hold a layer, does not age it, or has only part of
            it where it should have all.
    """
    if not hasattr(store, "fragment"):
        raise ConfigError(f"store is a {type(store).__name__}, expected LocalStore(optimizer) or ZeroStore(engine)")
    found: dict[str, Fragment] = {}
    problems, ageless = [], []
    for name, layer in layers.items():
        try:
            found[name] = fragment = store.fragment(layer.values)
        except ConfigError as error:
            problems += [f"{name}: {text}" for text in error.problems]
            continue
        size = layer.active * layer.grid.tile_size
        if fragment.total != size:
            problems.append(f"{name} has {size} active weights, its parameter {fragment.total}: it was cut by others")
        if "birth" not in fragment.state:
            ageless.append(name)
    if ageless:
        problems.append(
            f"the optimizer's groups do not age the values of {len(ageless)} of {len(layers)} sparse layers "
            f"({', '.join(ageless[:3])}), whose topology changes; {REMEDY}"
        )
    if problems:
        raise ConfigError(problems)
    return found


def require_served(layers: Mapping[str, SparseLinear], bank: Any) -> None:
    """Refuse a bank that was made of another model.

    Raises:
        ConfigError: a layer's mask is served by nobody, or by another bank.
    """
    if not isinstance(bank, MaskBank):
        raise ConfigError(f"bank is a {type(bank).__name__}, expected MaskBank(model)")
    for name, layer in layers.items():
        if not layer.is_full and layer.source is not (bank if bank.sharded else None):
            raise ConfigError(f"the mask of {name} is served by another MaskBank; make one of this model")


def require_same_kernels(layers: Mapping[str, SparseLinear], bank: MaskBank, group: dist.ProcessGroup | None) -> None:
    """Refuse hosts of which some multiply tiles and some whole matrices. Collective over ``group``.

    Each asks for masks that are sharded when its own products need them: they would wait for each other.

    Raises:
        ConfigError: the kernels differ between ranks, and a layer has tiles that some of them serve; on every rank.
    """
    if not bank.sharded or all(min(layer.grid.tile) < tiles.SMALLEST for layer in layers.values()):
        return
    devices = {layer.values.device for layer in layers.values()}
    own = {
        "SMET_COMPUTE": os.environ.get("SMET_COMPUTE"),
        "compute": [(name, vars(layer).get("compute")) for name, layer in layers.items()],
        "processor, compiler or version of Triton": [tiles.kernels_on(device) for device in sorted(devices, key=str)],
    }
    if found := differing(own, group):
        raise ConfigError(
            f"products over tiles are not made alike on all ranks ({'; '.join(found)} differ): use hosts of one kind "
            "and the same settings on all, or set SMET_COMPUTE=dense on all of them"
        )


def agree_on_remedies(config: SmetConfig, optimizer: AgedOptimizer) -> None:
    """Give ``optimizer`` the remedies that ``config`` asks for, unless it was told any.

    Raises:
        ConfigError: it was told others.
    """
    asked, told = Remedies.of(config), optimizer.ages.remedies
    if not optimizer.remedies_told:
        optimizer.ages.remedies = asked
    elif told != asked:
        raise ConfigError(
            [
                f"{name} is {vars(told)[name]!r} in the optimizer's remedies and {value!r} in the config; leave out"
                " remedies, which then follow the config"
                for name, value in vars(asked).items()
                if vars(told)[name] != value
            ]
        )
