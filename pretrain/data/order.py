"""The order of samples: a seeded permutation computed per sample number, never stored.

A Feistel network permutes the smallest power-of-two range that holds the samples; numbers that fall
outside are sent through again until they fall inside (cycle walking), which keeps the map a
bijection and takes fewer than two rounds through it on average (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002). The round function is the finalizer of SplitMix64 (Steele, Lea and
Flood, "Fast Splittable Pseudorandom Number Generators", 2014). Each epoch has keys of its own.
"""

from __future__ import annotations

from functools import lru_cache

ROUNDS = 8
_MASK64 = (1 << 64) - 1


def _mix(value: int) -> int:
    """SplitMix64's finalizer on 64 bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


@lru_cache(maxsize=256)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    state = _mix(_mix(seed & _MASK64) ^ epoch)
    return tuple(_mix(state ^ _mix(number)) for number in range(ROUNDS))


def permute(index: int, size: int, seed: int, epoch: int = 0) -> int:
    """The image of ``index`` under a permutation of ``range(size)`` chosen by ``(seed, epoch)``."""
    bits = (size - 1).bit_length()
    left_bits, right_bits = bits // 2, bits - bits // 2
    keys = _round_keys(seed, epoch)
    while True:
        index = _feistel(index, left_bits, right_bits, keys)
        if index < size:
            return index


def _feistel(value: int, left_bits: int, right_bits: int, keys: tuple[int, ...]) -> int:
    """One pass; the halves may differ by a bit, and change places every round (an even number of times)."""
    left, right = value >> right_bits, value & ((1 << right_bits) - 1)
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & ((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return (left << right_bits) | right


class SampleOrder:
    """Endless order of the samples ``0 .. num_samples - 1``: every epoch visits each once, shuffled anew.

    Args:
        num_samples: samples in one epoch, at least 1.
        seed: chooses the permutations.
    """

    def __init__(self, num_samples: int, seed: int):
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}, expected at least 1")
        self.num_samples = num_samples
        self.seed = seed

    def locate(self, sample_number: int) -> tuple[int, int]:
        """``(epoch, index)`` of the sample drawn at position ``sample_number`` (0 = the run's first)."""
        epoch, position = divmod(sample_number, self.num_samples)
        return epoch, permute(position, self.num_samples, self.seed, epoch)
