"""Bytes that a rank sends, by kind: the words and the convention that planner and counter share.

Convention: bytes *sent by this rank* under ring algorithms, for a payload of S bytes and n ranks:
all-reduce 2 S (n - 1) / n; all-gather (S is the gathered whole), reduce-scatter (S is the whole input) and
broadcast S (n - 1) / n; all-to-all what is meant for other ranks; send S; receive 0. The library below may
choose another algorithm; none sends less than a ring.
"""

from __future__ import annotations

KINDS = ("gradients", "weights", "masks", "tensor", "pipeline", "topology", "control")
"""Gradient sums and weight gathers over data-parallel ranks; mask gathers; tensor- and pipeline-parallel
traffic; all that a topology update sends; and control: scalars, flags and pickled objects."""


def ring_bytes(operation: str, payload: int, ranks: int) -> int:
    """Bytes that one of ``ranks`` ranks sends in ``operation`` on ``payload`` bytes; see the convention above."""
    if operation == "send":
        return payload
    return (2 if operation == "all_reduce" else 1) * payload * (ranks - 1) // ranks
