"""First masks: drawn, or chosen by what a criterion looks at before training begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smet.config import SmetConfig
from smet.criteria import DENSE, mask_needs, mask_of
from smet.criteria.sites import Start
from smet.errors import ConfigError
from smet.named import is_own

Loss = Callable[[nn.Module], Tensor]
"""The model to a scalar: the loss of a batch of one's own, or for SynFlow the sum of the outputs."""


def needs_dense_model(config: SmetConfig) -> bool:
    """Whether the first masks are chosen by what the dense model computes."""
    return bool(mask_needs(config) & DENSE)


def first_mask(
    name: str, shape: tuple[int, int], active: int, config: SmetConfig, given: Mapping[str, Tensor]
) -> Tensor:
    """Which tiles of a whole layer are active at first: bool ``(tiles,)``.

    Args:
        shape: rows and columns of tiles.
        given: what ``mask_needs(config)`` names.

    Raises:
        ConfigError: the function that ``config`` names gives no such mask.
    """
    tiles = shape[0] * shape[1]
    if active == tiles:  # of which there is one
        return torch.ones(tiles, dtype=torch.bool)
    if is_own(config.mask_init):  # which may write into what it is given
        given = {what: tensor.clone() for what, tensor in given.items()}
    start = Start(
        layer=name, tiles=tiles, columns=shape[1], balanced=config.is_balanced(config.block),
        ranges=config.topology_ranges, seed=config.seed, given=given,
    )  # fmt: skip
    try:
        mask = mask_of(config)(start, active)
    except (Exception, SystemExit) as error:
        if isinstance(error, ConfigError) or not is_own(config.mask_init):
            raise
        kind = f"{type(error).__name__}: {error}"
        raise ConfigError(f"mask_init '{config.mask_init}' fails on layer {name} ({kind})") from error
    sound = isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) == (tiles,)
    if not sound or int(mask.sum()) != active:
        kind = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        marked = f" with {int(mask.sum())} set" if sound else ""
        raise ConfigError(
            f"mask_init '{config.mask_init}' gives {kind}{marked} for layer {name}, expected a bool mask of"
            f" {tiles} tiles with {active} set"
        )
    return mask


@dataclass(frozen=True)
class DenseWeight:
    """One layer of the dense model whose first mask is to be chosen."""

    parameter: nn.Parameter
    to_tiles: Callable[[Tensor], Tensor]
    """What is shaped like the parameter to ``(tiles, tile_size)``."""
    shape: tuple[int, int]
    """Rows and columns of tiles."""
    active: int
    """Tiles that are to be active in the end."""


def dense_masks(
    model: nn.Module, weights: Mapping[str, DenseWeight], config: SmetConfig, losses: Sequence[Loss]
) -> dict[str, Tensor]:
    """First masks of all layers, bool ``(tiles,)``, by what the dense model computes. It is left as it was.

    Layers are pruned in so many rounds as the function asks for, from dense to their own densities by equal factors
    (SynFlow, Tanaka et al. 2020, arXiv 2006.05467, algorithm 1, but ranked within each layer). By ``flow`` all
    parameters are absolute meanwhile, and the model in evaluation mode.

    Args:
        losses: their gradients are added up; activations live for one at a time.

    Raises:
        ConfigError: the loss does not reach a layer, or is not finite.
    """
    function, needed = mask_of(config), mask_needs(config)
    kind, rounds = ("flow" if "flow" in needed else "gradient"), int(getattr(function, "rounds", 1))
    masks = {name: torch.ones(one.shape[0] * one.shape[1], dtype=torch.bool) for name, one in weights.items()}
    own = [one.parameter for one in weights.values()]
    changed = list(model.parameters()) if kind == "flow" else own if rounds > 1 else []
    with _borrowed(model, own, changed), torch.random.fork_rng():
        if kind == "flow":
            _make_absolute(model)
        for number in range(1, rounds + 1):
            gradients = _gradients(model, weights, losses)
            for name, one in weights.items():
                _require_reached(name, gradients[name], config)
                tiles = one.shape[0] * one.shape[1]
                share = (one.active / tiles) ** (number / rounds)
                count = one.active if number == rounds else max(one.active, math.ceil(share * tiles))
                given = {"weights": one.to_tiles(one.parameter.detach()), kind: gradients[name]}
                masks[name] = first_mask(name, one.shape, count, config, given).cpu()
                if number < rounds:
                    _zero(one, masks[name])
    return masks


def _zero(one: DenseWeight, mask: Tensor) -> None:
    """Write zeros into the tiles that ``mask`` leaves out; the next round gives them no score."""
    weight = one.parameter.detach()
    places = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
    off = one.to_tiles(places)[~mask.to(weight.device)].reshape(-1)
    weight.view(-1)[off] = 0


def _make_absolute(model: nn.Module) -> None:
    model.eval()
    for parameter in model.parameters():
        parameter.detach().abs_()


def _gradients(model: nn.Module, weights: Mapping[str, DenseWeight], losses: Sequence[Loss]) -> dict[str, Tensor]:
    sums = [torch.zeros_like(one.parameter, requires_grad=False) for one in weights.values()]
    for loss in losses:
        with torch.enable_grad():
            value = loss(model)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                cut = " without a graph" if isinstance(value, Tensor) and not value.requires_grad else ""
                raise ConfigError(f"loss gives {what}{cut}, expected one number that is computed from the weights")
            found = torch.autograd.grad(value, [one.parameter for one in weights.values()], allow_unused=True)
        for total, gradient in zip(sums, found, strict=True):
            if gradient is not None:
                total += gradient
    return {name: one.to_tiles(total) for (name, one), total in zip(weights.items(), sums, strict=True)}


def _require_reached(name: str, gradient: Tensor, config: SmetConfig) -> None:
    if not bool(gradient.isfinite().all()):
        raise ConfigError(
            f"mask_init '{config.mask_init}' meets numbers that are not finite in layer {name}: the loss, or the summed"
            " outputs by absolute weights, overflow"
        )
    if not bool(gradient.any()):
        raise ConfigError(
            f"mask_init '{config.mask_init}' has nothing to go by in layer {name}: the loss does not depend on it"
        )


@contextmanager
def _borrowed(model: nn.Module, weights: Sequence[nn.Parameter], changed: Sequence[nn.Parameter]) -> Iterator[None]:
    """Leave the model as it was; inside, ``weights`` have gradients and ``changed`` may be written to."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    parameters = [(parameter, parameter.detach().clone()) for parameter in changed]
    frozen = [weight for weight in weights if not weight.requires_grad]
    training = {module: module.training for module in model.modules()}
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        with torch.no_grad():
            for tensor, before in [*buffers, *parameters]:
                tensor.copy_(before)
        for weight in frozen:
            weight.requires_grad_(False)
        for module, was in training.items():
            module.training = was
