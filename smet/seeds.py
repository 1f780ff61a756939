"""Random numbers as a pure function of what they are for, so that every rank and layout agrees."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(*purpose: object) -> torch.Generator:
    """A CPU generator seeded by a hash of ``purpose``, e.g. ``generator(seed, "grow", name, update)``."""
    text = "\x1f".join(str(part) for part in purpose)
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(seed)


def sample_without_replacement(population: int, count: int, rng: torch.Generator) -> Tensor:
    """``count`` distinct int64 numbers in ``[0, population)``, uniformly, in ascending order.

    Draws with rejection where few are wanted, so that time and memory follow ``count``.
    """
    if count > population:
        raise ValueError(f"cannot draw {count} distinct numbers from {population}")
    if count * 3 > population:
        return torch.randperm(population, generator=rng)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < count:
        fresh = torch.randint(population, (count - drawn.numel() + 16,), generator=rng)
        fresh = fresh.unique()
        if drawn.numel():
            known = drawn.sort().values
            at = torch.searchsorted(known, fresh).clamp(max=known.numel() - 1)
            fresh = fresh[known[at] != fresh]
        fresh = fresh[torch.randperm(fresh.numel(), generator=rng)]
        drawn = torch.cat([drawn, fresh[: count - drawn.numel()]])
    return drawn.sort().values
