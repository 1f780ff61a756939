"""Writing safetensors files one tensor at a time.

The library's own writer wants every tensor of a file in memory at once. The format is a header and the
tensors' bytes back to back: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64",
    torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its shape and dtype are known before it is made."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write(
    path: Path,
    entries: Sequence[Entry],
    metadata: dict[str, str],
    progress: Callable[[int], object] = lambda written: None,
) -> None:
    """Write ``entries`` and flush them to disk; holds one of them at a time.

    They stay in order, but for those of larger numbers, which come first: so each lies where torch can take it.

    Args:
        metadata: free text in the header.
        progress: called with the bytes of each tensor written.
    """
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    with open(path, "wb") as file:
        header = _header(entries, metadata)
        file.write(len(header).to_bytes(8, "little") + header)
        for entry in entries:
            tensor = entry.load().to(entry.dtype)
            if tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{entry.name} has shape {tuple(tensor.shape)}, expected {entry.shape}")
            flat = tensor.contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)
            progress(entry.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _header(entries: Iterable[Entry], metadata: dict[str, str]) -> bytes:
    offset = 0
    content: dict[str, object] = {"__metadata__": metadata}
    for entry in entries:
        content[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(content, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def split(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """Cut ``entries`` into files of at most ``limit`` bytes; a larger tensor has a file of its own."""
    files: list[list[Entry]] = []
    size = 0
    for entry in entries:
        if not files or size + entry.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.nbytes
    return files
