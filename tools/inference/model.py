"""A trained model in one process: from a checkpoint of any layout, or from exported files.

Sparse layers stay what they are in training: active values and a packed mask. One weight at a time is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import outside
from pretrain.errors import CheckpointError, LaunchError
from pretrain.models import DEFAULT, family, inventory_of
from pretrain.models.family import FamilyConfig
from pretrain.models.inventory import Role
from pretrain.precision import DTYPES, widen_products
from smet.compute import AUTO, TABLE
from smet.errors import ConfigError
from smet.linear import SparseLinear, sparse_layers
from smet.mask import TileGrid, has_spare_bits, unpack
from smet.permutation import Order, Orders

from ..checkpoints.hf_config import read_config
from ..checkpoints.layers import SavedWeight
from ..checkpoints.reader import Checkpoint
from ..checkpoints.sparse_source import weights_in
from .settings import RunSettings, settings_of

CONFIG, MASKS = "config.json", "masks.safetensors"


@dataclass(kw_only=True)
class Loaded:
    """A model that computes, and what it came from."""

    model: Any
    """Token ids to logits; see ``pretrain.models.family.ModelModule``."""
    settings: FamilyConfig
    """Its ``model`` section."""
    place: Path
    """The checkpoint, or the folder of exported files."""
    precision: str
    device: torch.device
    checkpoint: Checkpoint | None
    """None of exported files, as ``run``."""
    run: RunSettings | None
    remarks: list[str]
    """What was changed or left out, a line each."""

    @property
    def longest(self) -> int:
        """Tokens of its context."""
        return inventory_of(self.settings).shape.longest

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return inventory_of(self.settings).shape.layers

    @property
    def sparse(self) -> dict[str, SparseLinear]:
        """Its sparse layers by name; full ones are not among them."""
        return {name: layer for name, layer in sparse_layers(self.model).items() if not layer.is_full}


def device_of(asked: str, in_run: str | None = None) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means.

    Args:
        in_run: what the run was told, which ``auto`` follows.

    Raises:
        LaunchError: there is no GPU.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise LaunchError("--device is cuda, and torch sees no GPU here; leave it out, or see nvidia-smi")
    wanted = in_run if asked == "auto" else asked
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def load(
    path: Path,
    *,
    precision: str | None = None,
    device: str = "auto",
    own_family: str | None = None,
    documents: bool = False,
    keep_dense: bool | None = None,
    closed: bool = False,
) -> Loaded:
    """The model in the run, checkpoint or exported folder ``path``.

    Args:
        precision: ``fp32`` or ``bf16``; None = that of the run, or of the files.
        device: see ``device_of``.
        own_family: see ``Checkpoint``.
        documents: keep attention within documents if the run did.
        keep_dense: whether sparse layers keep their dense weights between uses; None = as in the run.
        closed: see ``Checkpoint.sparse_layer``.

    Raises:
        UserError: there is none, it is damaged, or of code that is not to be imported.
    """
    exported = (path / CONFIG).is_file()
    loaded, weights, dense, sparse = (
        _of_files(path, own_family) if exported else _of_checkpoint(path, own_family, closed)
    )
    loaded.precision = precision or loaded.precision
    run, kind = loaded.run, family(loaded.settings.family)
    loaded.device = device_of(device, run.train.device if run else None)
    widen_products(loaded.device)
    with torch.device("meta"):
        eos_id = run.data.eos_id if documents and run and run.data.reset_attention else None
        model: Any = kind.model.Model(loaded.settings, eos_id=eos_id)
    _fill(model, weights, dense, sparse, loaded.device, DTYPES[loaded.precision])
    _tie(model, loaded.settings)
    if keep_dense is None:
        keep_dense = loaded.checkpoint is not None and loaded.checkpoint.sparsity.weight_residency == "dense"
    for layer in sparse_layers(model).values():
        layer.keep_dense = keep_dense
    loaded.model = model.eval().requires_grad_(False)
    return loaded


Dense = Callable[[SavedWeight], Tensor]
Sparse = Callable[[SavedWeight], SparseLinear | None]
"""The layer of a weight that is stored as a sparse one, else None."""
Opened = tuple[Loaded, Iterable[SavedWeight], Dense, Sparse]
"""The model to be, its weights in order, and how to read them, in fp32."""


def _of_checkpoint(path: Path, own_family: str | None, closed: bool) -> Opened:
    checkpoint = Checkpoint(path, own_family)
    run = settings_of(checkpoint, inventory_of(checkpoint.model).shape.longest)
    remarks = []
    compute = checkpoint.sparsity.compute
    if compute not in TABLE and compute != AUTO:
        remarks.append(
            f"sparsity.compute of the run is {compute}, code of its own, which is not imported: auto instead"
        )
        compute = AUTO

    def sparse(weight: SavedWeight) -> SparseLinear | None:
        if weight.layer is None:
            return None
        layer = checkpoint.sparse_layer(weight, closed)
        layer.compute = compute
        return layer

    loaded = Loaded(
        model=None, settings=checkpoint.model, place=checkpoint.folder, precision=run.train.precision,
        device=torch.device("cpu"), checkpoint=checkpoint, run=run, remarks=remarks,
    )  # fmt: skip
    return loaded, checkpoint.weights, checkpoint.dense_weight, sparse


def _of_files(folder: Path, own_family: str | None) -> Opened:
    name = own_family or DEFAULT
    kind = family(name)
    settings = read_config(folder, kind, name)
    inventory = inventory_of(settings)
    source = weights_in(folder, kind)
    source.require_depth(inventory.shape.layers)
    weights = [SavedWeight(name=w.name, shape=w.shape, vector=w.name, layer=None) for w in inventory.weights]
    source.require(weights, settings)
    masks = Masks(folder, {f"{name}.weight": kind.hf.file_name(f"{name}.weight") for name, _ in inventory.linears()})

    raw = outside.read_json(folder / CONFIG)
    bf16 = "bfloat16" in (raw.get("dtype"), raw.get("torch_dtype"))
    loaded = Loaded(
        model=None, settings=settings, place=folder, precision="bf16" if bf16 else "fp32", device=torch.device("cpu"),
        checkpoint=None, run=None, remarks=masks.remarks,
    )  # fmt: skip
    return (
        loaded,
        weights,
        lambda weight: source.tensor(weight.name),
        lambda weight: source.layer(weight) or masks.layer(weight, source.tensor),
    )


class Masks:
    """``masks.safetensors`` of an export; empty where there is none.

    Args:
        names: what the files call the weight of each linear layer.

    Raises:
        CheckpointError: it is damaged.
    """

    def __init__(self, folder: Path, names: Mapping[str, str]):
        self.path, self.remarks = folder / MASKS, list[str]()
        self._names = {name: theirs.removesuffix(".weight") for name, theirs in names.items()}
        self._layers: dict[str, Any] = {}
        if self.path.is_file():
            import safetensors

            try:
                self._file = safetensors.safe_open(self.path, framework="pt")
                self._layers = dict(outside.parse_json((self._file.metadata() or {})["layers"]))
            except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
                raise CheckpointError(f"{self.path} is damaged: {error}; export again, or remove it") from None

    def layer(self, weight: SavedWeight, dense: Callable[[str], Tensor]) -> SparseLinear | None:
        """The sparse layer of ``weight``; None where it has no mask, or weights outside of it.

        Raises:
            CheckpointError: its mask is none of this weight.
        """
        import safetensors

        key = self._names.get(weight.name, "")
        if key not in self._layers:
            return None
        (outputs, inputs), matrix = weight.shape, dense(weight.name)
        try:
            facts = self._layers[key]
            transposed, tile = bool(facts["transposed"]), (int(facts["block"][0]), int(facts["block"][1]))
            grid = TileGrid(*((inputs, outputs) if transposed else (outputs, inputs)), tile)
            bits: Tensor = self._file.get_tensor(key)
            sound = bits.dtype == torch.uint8 and tuple(bits.shape) == (grid.mask_bytes,)
            sound = sound and min(tile) > 0 and not has_spare_bits(bits, grid.tiles)
            orders = Orders(self._order(f"{key}.inputs", inputs), self._order(f"{key}.outputs", outputs))
        except (LookupError, TypeError, ValueError, ArithmeticError, ConfigError, safetensors.SafetensorError):
            sound = False
        if not sound:
            raise CheckpointError(f"{self.path}: the mask of {key} is none of a weight of {outputs} x {inputs}")
        stored = orders.stored(matrix)
        values = grid.to_tiles(stored.t() if transposed else stored)[unpack(bits, grid.tiles)].reshape(-1)
        if int(values.count_nonzero()) != int(matrix.count_nonzero()):
            self.remarks.append(f"{key} has weights outside of its mask, and is multiplied whole")
            return None
        layer = SparseLinear(inputs, outputs, bits, values, tile, transposed)
        layer.orders = orders
        return layer

    def _order(self, name: str, count: int) -> Order | None:
        """In which features are stored; raises ``ValueError`` if it is no permutation of so many."""
        if name not in set(self._file.keys()):
            return None
        features = self._file.get_tensor(name).long()
        if not torch.equal(features.sort().values, torch.arange(count)):
            raise ValueError(f"{name} is no permutation")
        return Order(features)


def _fill(
    model: nn.Module, weights: Iterable[SavedWeight], dense: Dense, sparse: Sparse, device: torch.device,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Put every weight into its place, or a sparse layer into that of its layer."""
    for weight in weights:
        name, _, last = weight.name.rpartition(".")
        if (layer := sparse(weight)) is None:
            setattr(model.get_submodule(name), last, nn.Parameter(dense(weight).to(device, dtype)))
            continue
        layer = layer.to(device, dtype)
        layer.bias = model.get_submodule(name).bias  # type: ignore[assignment]  # filled when its turn comes
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)


def _tie(model: nn.Module, settings: FamilyConfig) -> None:
    inventory = inventory_of(settings)
    if inventory.shape.tied:
        embedding = next(weight for weight in inventory.weights if weight.role is Role.EMBEDDING)
        model.get_submodule(inventory.shape.head).weight = model.get_submodule(embedding.module).weight
