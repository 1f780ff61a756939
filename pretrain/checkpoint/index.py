"""The index of a checkpoint, ``.metadata``: read as data, whoever wrote it.

torch.distributed.checkpoint keeps it as a pickle, and a pickle runs whatever function it names. Here it may name
only the few classes that an index is made of, and gets stand-ins for them: nothing else is looked up, so nothing else
runs. What comes out is then checked, so that later code can lean on it: every entry is a one-dimensional tensor, cut
into chunks that cover it exactly once, each within a file that the manifest lists.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from pretrain import outside
from pretrain.errors import CheckpointError
from smet.optim.formula import DTYPES

INDEX = ".metadata"
LIMIT = 4 << 30
"""Bytes of an index; that of 70 billion weights on a thousand ranks has a tenth."""


class _Fixed(type):
    """A class whose attributes cannot be set: a pickle can try that with every class that it may name."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"{name} of {cls.__name__} is not to be set")


class _Metadata(Metadata, metaclass=_Fixed):
    pass


class _Tensor(TensorStorageMetadata, metaclass=_Fixed):
    pass


class _Chunk(ChunkStorageMetadata, metaclass=_Fixed):
    pass


class _Info(_StorageInfo, metaclass=_Fixed):
    pass


class _Index(MetadataIndex, metaclass=_Fixed):
    """Equal to the index that torch makes to look it up."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MetadataIndex) and (self.fqn, self.offset) == (other.fqn, other.offset)

    __hash__ = MetadataIndex.__hash__


class _Properties(TensorProperties, metaclass=_Fixed):
    """Of which only the dtype is taken; the others are constants."""

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0]


class _Bytes(metaclass=_Fixed):
    """An object that torch pickled by itself; only its place in the index is read, to refuse it by its name."""


class _Ignored(metaclass=_Fixed):
    """Something that an index has, and nobody needs: names of folders, memory formats."""

    def __new__(cls, *arguments: Any) -> _Ignored:
        return super().__new__(cls)


_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED: dict[tuple[str, str], Any] = {
    (_METADATA, "Metadata"): _Metadata,
    (_METADATA, "TensorStorageMetadata"): _Tensor,
    (_METADATA, "ChunkStorageMetadata"): _Chunk,
    (_METADATA, "TensorProperties"): _Properties,
    (_METADATA, "MetadataIndex"): _Index,
    (_METADATA, "BytesStorageMetadata"): _Bytes,
    (_METADATA, "StorageMeta"): _Ignored,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _Ignored,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Info,
    ("torch.serialization", "_get_layout"): _Ignored,
    ("pathlib", "PosixPath"): _Ignored,
    ("pathlib._local", "PosixPath"): _Ignored,
    ("torch", "Size"): torch.Size,
    **{("torch", str(kind).removeprefix("torch.")): kind for kind in DTYPES},
}
"""What an index may name, and what stands for it here: immutable values, and classes that hold data."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what the pickle names; nothing is imported.

        Raises:
            CheckpointError: it names anything that no index is made of.
        """
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise CheckpointError(f"it names {module}.{name}, which is no part of an index; nothing was run") from None


def read_index(folder: Path, files: Mapping[str, Any]) -> Metadata:
    """The index of the checkpoint in ``folder``.

    Args:
        files: its files by name, as its manifest lists them, with their sizes as ``bytes``.

    Raises:
        CheckpointError: it is no index, names code, or its entries are not whole vectors in these files.
    """
    path = folder / INDEX
    try:
        with outside.reading(path, LIMIT) as file:
            found = _Unpickler(file).load()
            if file.read(1):
                raise CheckpointError("something follows the index")
        if not isinstance(found, _Metadata):
            raise CheckpointError(f"it holds {type(found).__name__}, expected the index of a checkpoint")
        for name, entry in found.state_dict_metadata.items():
            _require_whole(name, entry, found.storage_data, files)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except Exception:
        # A pickle may fail in any way that its instructions and the classes above can.
        raise CheckpointError(f"{path} is damaged: it is no index of a checkpoint") from None
    found.planner_data, found.storage_meta = None, StorageMeta()
    return found


def _require_whole(name: Any, entry: Any, places: Any, files: Mapping[str, Any]) -> None:
    """Check one entry: see the module's text."""
    if not isinstance(name, str):
        raise CheckpointError(f"it has an entry named by {type(name).__name__}, expected text")
    if not isinstance(entry, _Tensor) or not isinstance(entry.properties.dtype, torch.dtype):
        raise CheckpointError(f"{name} is no tensor; only tensors are loaded")
    (total,) = entry.size
    width, end = entry.properties.dtype.itemsize, 0
    for chunk in sorted(entry.chunks, key=lambda chunk: chunk.offsets[0]):
        (first,), (length,) = chunk.offsets, chunk.sizes
        if first != end or length < 1:
            raise CheckpointError(f"{name} is stored from element {first} on where {end} comes next")
        end += length
        _require_place(name, places[MetadataIndex(name, chunk.offsets)], length * width, files)
    if end != total:
        raise CheckpointError(f"{name} is stored up to element {end}, expected {total}")


def _require_place(name: str, place: Any, needed: int, files: Mapping[str, Any]) -> None:
    """Check that ``needed`` bytes can be where the index says, in a file of the checkpoint."""
    file, begin, length = place.relative_path, place.offset, place.length
    if not isinstance(file, str) or file not in files:
        raise CheckpointError(f"{name} is said to be in a file that the manifest does not list: {file:.80}")
    if not (isinstance(begin, int) and isinstance(length, int) and begin >= 0 and needed <= length):
        raise CheckpointError(f"{name} is said to need fewer bytes of {file} than the {needed} it has")
    if begin + length > files[file]["bytes"]:
        raise CheckpointError(f"{name} is said to lie beyond the end of {file}")
    if getattr(place, "transform_descriptors", None):
        raise CheckpointError(f"{name} is said to be transformed in {file}; this program stores plain tensors only")
