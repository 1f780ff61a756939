"""Sparse models in Hugging Face's files (docs/sparse-format.md), read one layer at a time and without transformers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pretrain import outside
from pretrain.errors import CheckpointError
from pretrain.models.family import Family
from smet.errors import ConfigError
from smet.linear import SparseLinear
from smet.sparse_file import KEYS, METHOD, VALUES, Held, StoredLayer, made, require_known, stored_layer

from .layers import SavedWeight
from .leftovers import Dropping
from .source import Weights

CONFIG = "config.json"


def is_sparse(folder: Path) -> bool:
    """Whether ``config.json`` in ``folder`` says that the model is a sparse one.

    Raises:
        ConfigError: one of a format that is not known here.
    """
    try:
        raw = outside.read_json(folder / CONFIG, 16 * outside.MEGABYTE)
    except (OSError, ValueError):
        return False  # who reads the model says so
    given = raw.get("quantization_config") if isinstance(raw, dict) else None
    if not isinstance(given, dict) or given.get("quant_method") != METHOD:
        return False
    try:
        require_known(given)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from None
    return True


def weights_in(folder: Path, family: Family, dropping: Dropping | None = None) -> Weights:
    """The tensors of a model, be it dense or sparse; see ``Weights``."""
    return (SparseWeights if is_sparse(folder) else Weights)(folder, family, dropping)


class SparseWeights(Weights):
    """The tensors of a sparse model, of which some are stored as a layer's active values and mask."""

    def __init__(self, folder: Path, family: Family, dropping: Dropping | None = None):
        super().__init__(folder, family, dropping)
        self._stored: dict[str, StoredLayer] = {}

    def _held(self, name: str, weight: SavedWeight) -> tuple[str, tuple[int, ...]]:
        layer = name.removesuffix(".weight")
        if f"{layer}.{VALUES}" not in self._file_of:
            return super()._held(name, weight)
        held = {}
        for full in (f"{layer}.{key}" for key in (*KEYS, "bias")):
            if full in self._file_of:
                held[full] = Held(str(self.folder / self._file_of[full]), *super()._held(full, weight))
        rows, cols = weight.shape
        self._stored[name] = stored = stored_layer(layer, held, self._read, (rows, cols), f"{layer}.bias" in held)
        return stored.entries[VALUES].dtype, stored.shape

    def _names(self) -> set[str]:
        parts = {f"{name.removesuffix('.weight')}.{key}" for name, one in self._stored.items() for key in one.entries}
        return super()._names() - parts | self._stored.keys()

    def _tensor(self, name: str) -> Tensor:
        layer = self._layer(name)
        return super()._tensor(name) if layer is None else layer.orders.natural(layer.dense_weight())

    def layer(self, weight: SavedWeight) -> SparseLinear | None:
        """See ``Weights``."""
        return self._layer(self.family.hf.file_name(weight.name))

    def _layer(self, name: str) -> SparseLinear | None:
        stored = self._stored.get(name)
        if stored is None:
            return None
        layer = name.removesuffix(".weight")
        tensors = {key: self._read(f"{layer}.{key}") for key in stored.entries}
        tensors[VALUES] = values = tensors[VALUES].float()
        if odd := values.numel() - int(values.isfinite().sum()):
            raise CheckpointError(
                f"{stored.entries[VALUES].file}: {odd:,} of {values.numel():,} weights of {layer} are NaN or infinite,"
                " expected finite ones"
            )
        return made(stored, tensors)
