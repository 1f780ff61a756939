"""The mask of a layer as a picture: where tiles are active, and how long they have been."""

from __future__ import annotations

import base64
import threading
from pathlib import Path
from typing import Any

from pretrain.checkpoint.folder import MANIFEST, published
from pretrain.errors import CheckpointError

from .lines import text

SIDE = 384
"""Most pixels of a picture's side; of a larger layer each stands for several tiles."""
PIECE = 1 << 20
"""Active tiles that are looked at together."""


class Pictures:
    """Pictures from the newest checkpoint of a run, made one at a time, the last ones kept.

    torch is imported with the first one, and takes one core. Only what a picture needs is read of a checkpoint: no
    weights, and no checksums.
    """

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._opened: tuple[Path, float, Any] | None = None
        self._made: dict[str, dict[str, Any]] = {}

    def of(self, layer: str | None) -> dict[str, Any]:
        """The picture of ``layer``, or of the first one that has a mask.

        Raises:
            UserError: there is no checkpoint, or it cannot be read, or has no such layer.
            OSError: a file of it went away.
        """
        with self._lock:
            checkpoint = self._open()
            weights = {w.layer.name: w for w in checkpoint.weights if w.layer is not None and w.has_mask}
            if not weights:
                raise CheckpointError(f"no layer in {checkpoint.folder.name} has a mask: all are dense")
            name = next(iter(weights)) if layer is None else layer
            if name not in weights:
                raise CheckpointError(f"{checkpoint.folder.name} has no layer {text(name, 100)} with a mask")
            if name not in self._made:
                if len(self._made) >= 8:
                    self._made.pop(next(iter(self._made)))
                self._made[name] = draw(checkpoint, weights[name])
            return {**self._made[name], "layers": [text(one, 200) for one in weights]}

    def _open(self) -> Any:
        found = [path for path in published(self.root) if (path / MANIFEST).is_file()]
        if not found:
            raise CheckpointError("no checkpoint is published yet: masks are read from the newest one")
        written = (found[-1] / MANIFEST).stat().st_mtime
        if self._opened is None or self._opened[:2] != (found[-1], written):
            import torch

            from ..checkpoints.reader import Checkpoint

            torch.set_num_threads(1)
            self._opened = found[-1], written, Checkpoint(found[-1], check=False)
            self._made.clear()
        return self._opened[2]


def draw(checkpoint: Any, weight: Any) -> dict[str, Any]:
    """The picture of one layer, with outputs from top to bottom and inputs from left to right, in the order of tiles.

    Returns:
        ``active`` and ``age``: a byte per pixel, row by row, base64: the share of its tiles that are active (255 =
        all), and the mean age of those (255 = as old as the run); ``births``: (step, tiles) pairs.
    """
    import torch

    from smet.mask import unpack
    from smet.optim.ages import CLOSED
    from smet.permutation import NONE

    spec, step = weight.layer, checkpoint.step
    stored = unpack(checkpoint.mask(weight), spec.grid.tiles).nonzero().view(-1)
    table = [0 if born is None else int(born) for born in checkpoint.state["topology"]["ages"]["births"]]
    name = f"{weight.vector}/birth"
    aged = name in checkpoint.vectors
    codes = checkpoint.vector(name)[:: spec.grid.tile_size] if aged else torch.zeros(len(stored), dtype=torch.uint8)
    if not aged:
        table = [0] * len(table)
    is_open = codes != CLOSED if checkpoint.sparsity.falls else torch.ones_like(codes, dtype=torch.bool)
    places, codes = stored[is_open], codes[is_open]
    rows, cols = spec.grid.shape
    outputs, inputs = (cols, rows) if spec.transposed else (rows, cols)
    height, width = min(SIDE, outputs), min(SIDE, inputs)
    counts, ages = torch.zeros(height * width), torch.zeros(height * width)
    age_of = torch.tensor([max(0, step - born) for born in table], dtype=torch.float32)
    for begin in range(0, len(places), PIECE):
        place, code = places[begin : begin + PIECE], codes[begin : begin + PIECE].long()
        row, col = place // cols, place % cols
        row, col = (col, row) if spec.transposed else (row, col)
        pixel = row * height // outputs * width + col * width // inputs
        counts += torch.bincount(pixel, minlength=height * width)
        ages += torch.bincount(pixel, weights=age_of[code], minlength=height * width)
    births: dict[int, int] = {}
    for code, count in enumerate(codes.bincount(minlength=len(table)).tolist()):
        if count:
            births[table[code]] = births.get(table[code], 0) + count
    age = (ages / counts.clamp(min=1) / max(1, step)).clamp(0, 1)
    return {
        "layer": text(spec.name, 200), "step": step, "checkpoint": checkpoint.folder.name,
        "tile": list(spec.grid.tile), "transposed": bool(spec.transposed), "outputs": outputs, "inputs": inputs,
        "height": height, "width": width, "tiles": spec.grid.tiles, "open": len(places),
        "closed": len(stored) - len(places), "aged": aged, "births": sorted(births.items()),
        "permuted": checkpoint.orders(weight) != NONE,
        "active": _bytes(counts / _tiles_per_pixel(outputs, inputs, height, width)), "age": _bytes(age),
    }  # fmt: skip


def _tiles_per_pixel(outputs: int, inputs: int, height: int, width: int) -> Any:
    import torch

    down = torch.bincount(torch.arange(outputs) * height // outputs, minlength=height)
    across = torch.bincount(torch.arange(inputs) * width // inputs, minlength=width)
    return torch.outer(down, across).view(-1).float()


def _bytes(shares: Any) -> str:
    """Shares from 0 to 1 as bytes; what is not 0 stays visible."""
    import torch

    scaled = torch.where(shares > 0, (shares * 255).round().clamp(1, 255), torch.zeros_like(shares))
    return base64.b64encode(scaled.to(torch.uint8).numpy().tobytes()).decode()
