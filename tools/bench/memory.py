"""Bytes at rest of the sparse layers, and the peak of whole processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pretrain.peak import resident_peak

from .engines import DenseSide, Side, SparseSide, random_batches
from .figures import Figure
from .ranks import Rank
from .session import Session

PEAK_STEPS = 3


def at_rest(session: Session) -> dict[str, dict[str, int]]:
    """Bytes by kind of the layers that SMET makes sparse, on the fullest rank. Collective."""
    found = {}
    for name, side in session.sides.items():
        tables = session.layout.gather_objects(side.at_rest(session.batches)["sparse"])
        found[name] = max(tables, key=lambda table: sum(table.values()))
    return found


def peak_dense(rank: Rank) -> int:
    """Peak resident bytes of a process that only trains the dense model. Collective."""
    return _peak(DenseSide(rank.options, rank.layout, "torch fused AdamW"), rank)


def peak_smet(rank: Rank) -> int:
    """Peak resident bytes of a process that only trains SMET, with a topology update. Collective."""
    side = SparseSide(rank.options, rank.layout)
    return _peak(side, rank, side.topology.update)


def _peak(side: Side, rank: Rank, last: Callable[[], Any] | None = None) -> int:
    batches = random_batches(rank.options, rank.layout)
    for _ in range(PEAK_STEPS):
        side.step(batches)
        rank.tick()
    if last is not None:
        last()
    return max(rank.layout.gather_objects(resident_peak()))


def figures(rest: dict[str, dict[str, int]], dense: str, peaks: dict[str, int]) -> list[Figure]:
    """From what ``at_rest`` and ``peak`` returned."""
    own, base = (sum(rest[name].values()) for name in ("SMET", dense))
    return [
        Figure(
            name="bytes_at_rest", value=own / base,
            note=f"{own / 1e6:.1f} of {base / 1e6:.1f} MB on the fullest rank, live tensors of both",
        ),
        Figure(name="peak_memory_dense", value=peaks["dense"] / 1e6, note="libraries and activations included"),
        Figure(name="peak_memory", value=peaks["SMET"] / 1e6, note="the same, with a topology update"),
    ]  # fmt: skip
