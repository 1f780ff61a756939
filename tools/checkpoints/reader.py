"""A published checkpoint, opened in one process without a process group: one vector in memory at a time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.permutation import permutation_digest
from pretrain.checkpoint.state import read_state
from pretrain.checkpoint.vectors import VectorReader
from pretrain.config.load import named_family
from pretrain.config.retired import without_retired
from pretrain.config.typed import build, problems_of
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models import family, inventory_of, known_family
from pretrain.models.family import Family, FamilyConfig
from smet import SmetConfig
from smet.linear import SparseLinear
from smet.mask import count_active, has_spare_bits, pack, unpack
from smet.named import is_own
from smet.optim import FORMULAS, find
from smet.optim.ages import CLOSED
from smet.permutation import NONE, Orders

from .layers import SavedWeight, orders_in, weights_of


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``path`` means: itself, or the newest published one of a run or checkpoints folder.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"checkpoint {path} {'is a file' if path.exists() else 'does not exist'}, expected a folder: "
            "step-00000100, or the checkpoints or run folder that holds it"
        )
    if (path / folders.MANIFEST).is_file() or folders.step_of(path) >= 0:
        return path
    for root in (path / "checkpoints", path):
        if steps := folders.published(root):
            return steps[-1]
    raise CheckpointError(
        f"{path} holds neither {folders.MANIFEST} nor published checkpoints, expected a folder such as "
        "runs/NAME, runs/NAME/checkpoints or runs/NAME/checkpoints/step-00000100"
    )


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, once every file that it lists matches its checksum.

    Raises:
        CheckpointError: not a published checkpoint, or damaged; names the file.
    """
    manifest = folders.read_manifest(folder, option="")
    sizes = [manifest["files"][name]["bytes"] for name in sorted(manifest["files"])]
    bar = tqdm(total=sum(sizes), desc="verify", unit="B", unit_scale=True, disable=None, file=sys.stderr)
    with bar:
        for number, size in enumerate(sizes):
            if problems := folders.damage(folder, manifest, (number, len(sizes))):
                raise CheckpointError(f"checkpoint is damaged: {problems[0]}{folders.remedy(folder, option='')}")
            bar.update(size)
    return manifest


class Checkpoint:
    """A verified checkpoint.

    ``vectors`` gives length and dtype of each stored vector by name; ``state`` is the small state beside them.

    Args:
        path: a step folder, or a folder of which the newest published checkpoint is meant.
        own_family: the user's own model family (``package.module:FAMILY``); one that only the checkpoint names is
            never imported.
        check: compare every file with its checksum first; without that, a look at one layer of a large checkpoint
            reads only that layer.

    Raises:
        CheckpointError: none there, damaged, or its vectors are not those its settings ask for.
    """

    def __init__(self, path: str | Path, own_family: str | None = None, check: bool = True):
        self.folder = find_checkpoint(Path(path))
        self.manifest = verify(self.folder) if check else folders.read_manifest(self.folder, option="")
        self.state: dict[str, Any] = read_state(self.folder)
        self._reader = VectorReader(self.folder)
        self.vectors: dict[str, tuple[int, torch.dtype]] = {
            name: (entry.size.numel(), entry.properties.dtype) for name, entry in self._reader.entries().items()
        }
        self.family = self._family(own_family)
        self.model, self.sparsity = self._settings()
        self._require_size()
        self.weights = weights_of(self.model, self.sparsity)
        self._require_known_vectors()
        self._require_same_permutation()

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])

    def section(self, name: str) -> dict[str, Any]:
        """A section of the run's settings; empty where it is not recorded."""
        return dict(self.state.get("config", {}).get(name) or {})

    def _family(self, own: str | None) -> Family:
        """The model family that the checkpoint is of."""
        name = named_family({"model": self.section("model")})
        if own is not None and own != name:
            raise CheckpointError(f"--family is {own}, expected that of checkpoint {self.folder}: {name}")
        try:
            return family(own) if own is not None else known_family(name)
        except ConfigError as error:
            hint = f"; if you trust it, add --family {name}" if is_own(name) and own is None else ""
            raise CheckpointError(f"checkpoint {self.folder}: {error}{hint}") from None

    def _settings(self) -> tuple[FamilyConfig, SmetConfig]:
        problems: list[str] = []
        model, _ = build(self.family.config, self.section("model"), "model", problems)
        given = without_retired("sparsity", self.section("sparsity"), problems)
        sparsity, _ = build(SmetConfig, given, "sparsity", problems)
        problems = problems or problems_of("model", model) + problems_of("sparsity", sparsity)
        if problems:
            raise CheckpointError(
                f"{self.folder / folders.STATE} holds settings of another version: {problems[0]}; use the version "
                "that its manifest.json names"
            )
        return model, sparsity

    def _require_size(self) -> None:
        """Before anything is built: settings from elsewhere may speak of a model that no memory holds."""
        shape = inventory_of(self.model).shape
        largest = max((length for length, _ in self.vectors.values()), default=0)
        if shape.layers > len(self.vectors) or shape.vocabulary * shape.width > largest:
            raise CheckpointError(
                f"checkpoint {self.folder} does not hold the model in its {folders.STATE}: {len(self.vectors)} vectors "
                f"for {shape.layers} layers, of at most {largest} elements with an embedding of {shape.vocabulary} x "
                f"{shape.width}"
            )

    def _require_known_vectors(self) -> None:
        """Every vector that the settings ask for is there, and nothing else is."""
        values = {weight.vector: weight.stored for weight in self.weights}
        masks = {w.layer.mask: w.mask_bytes for w in self.weights if w.layer and w.mask_bytes}
        means = {f"{w.layer.name}.mean_gradient": w.numel for w in self.weights if w.layer and w.layer.aged}
        for name, length in {**values, **masks}.items():
            found, kind = self.vectors.get(name, (None, None))
            if found != length:
                raise CheckpointError(
                    f"checkpoint {self.folder} has {found if found is not None else 'no'} elements of {name}, expected "
                    f"{length} by the settings in its {folders.STATE}"
                )
            if kind != (expected := torch.uint8 if name in masks else torch.float32):
                raise CheckpointError(f"checkpoint {self.folder} has {name} as {kind}, expected {expected}")
        state = self._declared()
        for name, (length, kind) in self.vectors.items():
            parameter, _, key = name.partition("/")
            fits = key.isidentifier() if state is None else kind == state.get(key)
            fits = kind == torch.uint8 if key == "birth" else fits
            fits = (fits and length == values.get(parameter)) or (kind == torch.float32 and length == means.get(name))
            if name not in values and name not in masks and not fits:
                raise CheckpointError(
                    f"checkpoint {self.folder} holds {name} ({length} elements, {kind}), which the settings in its "
                    f"{folders.STATE} do not ask for"
                )

    def _require_same_permutation(self) -> None:
        saved, own = self.manifest.get("permutation"), permutation_digest(self.model, self.sparsity)
        if saved != own:
            raise CheckpointError(
                f"checkpoint {self.folder} has features permuted otherwise than the settings in its {folders.STATE} say"
                f" (digest {saved or 'none'}, expected {own or 'none'}); use the version that its manifest.json names"
            )

    def _declared(self) -> dict[str, torch.dtype] | None:
        """What the optimizer keeps beside each weight, by name; None where only somebody's own module would tell."""
        name = str(self.section("optimizer").get("name") or "adamw")
        if name not in FORMULAS:
            return None
        return {one.name: one.dtype or torch.float32 for one in find("optimizer.name", name).state}

    def vector(self, name: str) -> Tensor:
        """The whole vector ``name``, 1-D, on the CPU.

        Raises:
            KeyError: there is none of that name.
        """
        length, dtype = self.vectors[name]
        whole = torch.empty(length, dtype=dtype)
        self._reader.fill(name, whole, 0, length)
        return whole

    def mask(self, weight: SavedWeight) -> Tensor:
        """Packed mask of a sparse weight, uint8; of a full one all ones.

        Raises:
            CheckpointError: it does not have as many active tiles as there are values.
        """
        spec = weight.layer
        assert spec is not None
        if spec.is_full:
            return pack(torch.ones(spec.grid.tiles, dtype=torch.bool))
        bits = self.vector(spec.mask)
        found = count_active(bits)
        if found != spec.active or has_spare_bits(bits, spec.grid.tiles):
            raise CheckpointError(
                f"checkpoint {self.folder}: {spec.mask} has {found} active tiles, expected {spec.active}"
            )
        return bits

    def closed(self, weight: SavedWeight) -> Tensor | None:
        """Which stored tiles of a weight a falling density has closed, bool; None where density stays.

        Raises:
            CheckpointError: some of their weights are not 0.
        """
        spec = weight.layer
        if spec is None or spec.final == spec.density or f"{weight.vector}/birth" not in self.vectors:
            return None
        closed = self.vector(f"{weight.vector}/birth") == CLOSED
        if bool(self.vector(weight.vector)[closed].any()):
            raise CheckpointError(f"checkpoint {self.folder}: {weight.vector} is not 0 in tiles that are closed")
        return closed[:: spec.grid.tile_size]

    def open_tiles(self, weight: SavedWeight) -> int:
        """Tiles of a sparse weight that are trained: all that are stored, but for those that are closed."""
        assert weight.layer is not None
        closed = self.closed(weight)
        return weight.layer.active - (0 if closed is None else int(closed.sum()))

    def open_mask(self, weight: SavedWeight) -> Tensor:
        """Packed mask of a sparse weight, without tiles that are closed; see ``mask``."""
        bits, closed = self.mask(weight), self.closed(weight)
        if closed is None or weight.layer is None:
            return bits
        stored = unpack(bits, weight.layer.grid.tiles)
        stored[stored.nonzero().view(-1)[closed]] = False
        return pack(stored)

    def values(self, weight: SavedWeight) -> Tensor:
        """What is stored of one weight, fp32, 1-D: all of it, or its active values.

        Raises:
            CheckpointError: some of them are NaN or infinite.
        """
        values = self.vector(weight.vector)
        if odd := values.numel() - int(values.isfinite().sum()):
            raise CheckpointError(
                f"checkpoint {self.folder}: {odd:,} of {values.numel():,} weights of {weight.name} are NaN or "
                "infinite, expected finite ones: the run had diverged; take an earlier checkpoint of it"
            )
        return values

    def dense_weight(self, weight: SavedWeight) -> Tensor:
        """One weight as the model computes with it, fp32; inactive entries are exactly 0.

        Raises:
            CheckpointError: its mask does not fit its values, or some of them are NaN or infinite.
        """
        if weight.layer is None:
            return self.values(weight).view(weight.shape)
        layer = self.sparse_layer(weight)
        return layer.orders.natural(layer.dense_weight())

    def sparse_layer(self, weight: SavedWeight, closed: bool = False) -> SparseLinear:
        """The layer around a weight that is stored as a sparse one, in fp32 and without a bias.

        Args:
            closed: with tiles that a falling density has closed, as the run multiplies them; their weights are 0.

        Raises:
            CheckpointError: see ``dense_weight``.
        """
        spec, (outputs, inputs) = weight.layer, weight.shape
        assert spec is not None
        values = self.values(weight)
        if closed or (shut := self.closed(weight)) is None:
            bits = self.mask(weight)
        else:
            bits, values = self.open_mask(weight), values.view(len(shut), -1)[~shut].view(-1)
        layer = SparseLinear(inputs, outputs, bits, values, spec.grid.tile, spec.transposed)
        layer.configured_density, layer.orders = spec.density, self.orders(weight)
        return layer

    def orders(self, weight: SavedWeight) -> Orders:
        """In which the features of a sparse weight are stored, and those that its mask is of."""
        return NONE if weight.layer is None else orders_in(weight.layer, self.sparsity)
