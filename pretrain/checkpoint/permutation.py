"""Whether a checkpoint's features are permuted as those of the run that goes on from it: else it computes another
function. Permutations are drawn anew at each start; the manifest has their digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.checkpoint.folder import read_manifest
from pretrain.command import again, override
from pretrain.config import RunConfig
from pretrain.errors import CheckpointError
from pretrain.models import inventory_of
from pretrain.models.family import FamilyConfig
from smet import SmetConfig
from smet.patterns import selects
from smet.permutation import digest_of

SETTINGS = {"permute": "none", "seed": 0, "topology_ranges": 1}
"""What permutations follow from beside the model, and what it is where settings of before lack it."""


def permutation_digest(model: FamilyConfig, sparsity: SmetConfig) -> str | None:
    """Digest of the permutations of all sparse layers, at any layout; None where features are not permuted."""
    if not sparsity.is_permuted:
        return None
    inventory = inventory_of(model)
    linears = [(name, shape) for name, shape in inventory.linears() if selects(name, sparsity)]
    return digest_of(((name, shape, name in inventory.transposed) for name, shape in linears), sparsity)


def require_same_permutation(state: dict[str, Any], config: RunConfig, path: Path) -> None:
    """Refuse to go on with permutations that are not those of the checkpoint at ``path``.

    Args:
        state: its small state.

    Raises:
        CheckpointError: says what it has, and how to go on.
    """
    saved, own = read_manifest(path).get("permutation"), permutation_digest(config.model, config.sparsity)
    if saved == own:
        return
    before = {**SETTINGS, **(state["config"].get("sparsity") or {})}
    other = {name: before[name] for name in SETTINGS if before[name] != getattr(config.sparsity, name)}
    told = "; ".join(f"{name} {value}, this run's is {getattr(config.sparsity, name)}" for name, value in other.items())
    remedy = f"to go on: {again(*(override(f'sparsity.{name}', value) for name, value in other.items()))}"
    raise CheckpointError(
        f"checkpoint {path} has features permuted otherwise ({told or 'by another version of the program'}; digest "
        f"{saved or 'none'}, this run's is {own or 'none'}); "
        + (remedy if other else "use the version that its manifest.json names")
    )
