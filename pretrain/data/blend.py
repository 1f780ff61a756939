"""Blends: which corpus the n-th sample comes from, in exact proportions, computed without an index.

A binary tree over the corpora; each node deals its samples left and right so that after n of them
``floor(n p + 1/2)`` went left, where p is the exact share of the left subtree. So after any number of
samples every corpus is within one sample per level of the tree (log2 of the number of corpora) of its
exact share.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pretrain.errors import DataError


class Blend:
    """Exact, stateless interleaving of corpora.

    Args:
        weights: one positive number per corpus; only their ratios matter. Decimal fractions are
            taken as written (0.1 is one tenth).

    Raises:
        DataError: no weight, or one that is not a positive finite number.
    """

    def __init__(self, weights: Sequence[float]):
        try:
            self.weights = [Fraction(str(weight)) for weight in weights]
        except ValueError:
            self.weights = []
        if not self.weights or min(self.weights) <= 0:
            raise DataError(f"blend weights are {list(weights)}, expected positive numbers, such as [0.7, 0.3]")

    def locate(self, sample_number: int) -> tuple[int, int]:
        """``(corpus, number)``: which corpus, and which of its own samples, position ``sample_number`` draws."""
        first, end, number = 0, len(self.weights), sample_number
        while end - first > 1:
            middle = (first + end) // 2
            left = self._left(first, middle, end, number)
            if self._left(first, middle, end, number + 1) > left:
                end, number = middle, left
            else:
                first, number = middle, number - left
        return first, number

    def counts(self, num_samples: int) -> list[int]:
        """How many of the first ``num_samples`` samples each corpus gives."""
        return self._counts(0, len(self.weights), num_samples)

    def _counts(self, first: int, end: int, number: int) -> list[int]:
        if end - first == 1:
            return [number]
        middle = (first + end) // 2
        left = self._left(first, middle, end, number)
        return self._counts(first, middle, left) + self._counts(middle, end, number - left)

    def _left(self, first: int, middle: int, end: int, number: int) -> int:
        share = sum(self.weights[first:middle]) / sum(self.weights[first:end])
        return int((number * share + Fraction(1, 2)) // 1)
