"""Bytes that this rank sends, counted from the actual collectives, by kind.

Every collective that Python starts ends in a method of torch's ``ProcessGroup``, whoever called it and by
whichever name; those methods are wrapped while a counter is open. The convention is that of ``pretrain.traffic``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.layout import Coordinates, Layout
from pretrain.traffic import KINDS, ring_bytes
from smet.activity import TOPOLOGY, doing

SCALARS = 8
"""Tensors of at most so many elements are norms, flags and losses: control."""

OPERATIONS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "allgather": "all_gather",
    "_allgather_base": "all_gather",
    "all_gather_single": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "all_gather_single_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "reduce_scatter_single_coalesced": "reduce_scatter",
    "alltoall_base": "all_to_all",
    "all_to_all_single": "all_to_all",
    "broadcast": "broadcast",
    "send": "send",
}
"""Methods of ``ProcessGroup``, under their older and newer names, and what they do."""


class TrafficCounter:
    """Counts while it is open; use it as a context manager. One at a time per process.

    Args:
        layout: tells which ranks share what, by which traffic is told apart.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.sent: Counter[str] = Counter()
        """Kind -> bytes sent by this rank so far."""
        self.calls: Counter[str] = Counter()
        """Kind -> collectives."""
        self._originals: dict[str, Any] = {}
        self._axes: dict[str, str] = {}

    def __enter__(self) -> TrafficCounter:
        """Start to count."""
        methods = vars(dist.ProcessGroup)
        for name, operation in OPERATIONS.items():
            if name in methods:
                self._originals[name] = methods[name]
                setattr(dist.ProcessGroup, name, self._counting(methods[name], operation))
        return self

    def __exit__(self, *unused: object) -> None:
        """Stop counting; what was counted stays."""
        for name, original in self._originals.items():
            setattr(dist.ProcessGroup, name, original)
        self._originals.clear()

    def take(self) -> dict[str, int]:
        """Bytes by kind since the last ``take``; every kind is there."""
        taken = {kind: self.sent[kind] for kind in KINDS}
        self.sent.clear()
        self.calls.clear()
        return taken

    def _counting(self, original: Any, operation: str) -> Callable[..., Any]:
        method = original.__get__ if hasattr(original, "__get__") else lambda group, kind=None: original

        def counted(group: Any, *arguments: Any, **options: Any) -> Any:
            self._count(operation, group, arguments)
            return method(group, type(group))(*arguments, **options)

        return counted

    def _count(self, operation: str, group: Any, arguments: Sequence[Any]) -> None:
        ranks = group.size()
        if ranks == 1:
            return
        # Gathers and scatters take (outputs, inputs, ...): the whole is the output of the one, the input of the other.
        whole = _flat(arguments[1 if operation in ("reduce_scatter", "all_to_all") else 0])
        payload = sum(tensor.numel() * tensor.element_size() for tensor in whole)
        if operation == "all_to_all":
            sent = _for_others(whole[0], arguments, group)
        else:
            sent = ring_bytes(operation, payload, ranks)
        kind = self._kind(operation, group, whole)
        self.sent[kind] += sent
        self.calls[kind] += 1

    def _kind(self, operation: str, group: Any, whole: list[Tensor]) -> str:
        if doing() == TOPOLOGY:
            return TOPOLOGY
        axis = self._axis(group)
        floating = whole[0].is_floating_point()
        if axis == "control" or sum(tensor.numel() for tensor in whole) <= SCALARS:
            return "control"
        if axis != "data":
            return axis if floating else "control"
        if floating:
            return "weights" if operation in ("all_gather", "broadcast") else "gradients"
        # Pickled objects travel through the list form of all-gather on other dtypes than ours.
        return "masks" if operation == "all_gather" and len(whole) == 1 else "control"

    def _axis(self, group: Any) -> str:
        """Along which degree the ranks of ``group`` differ."""
        name = group.group_name
        if name not in self._axes:
            self._axes[name] = self._find_axis(group)
        return self._axes[name]

    def _find_axis(self, group: Any) -> str:
        layout = self.layout
        controls = [other.group_name for other in (layout.control, layout.tensor_control) if other is not None]
        if group.group_name in controls:
            return "control"
        places = [Coordinates.of(r, layout.dp_size, layout.tensor_size) for r in dist.get_process_group_ranks(group)]
        varying = [
            axis
            for axis, values in (
                ("data", {place.data for place in places}),
                ("tensor", {place.tensor for place in places}),
                ("pipeline", {place.stage for place in places}),
            )
            if len(values) > 1
        ]
        if "pipeline" in varying:
            return "pipeline"  # sends also travel through the group of all ranks
        return varying[0] if len(varying) == 1 else "control"


def _flat(tensors: Any) -> list[Tensor]:
    if torch.is_tensor(tensors):
        return [tensors]
    return [tensor for item in tensors for tensor in _flat(item)]


def _for_others(whole: Tensor, arguments: Sequence[Any], group: Any) -> int:
    """Bytes of an all-to-all's input that are not this rank's own: arguments are (output, input, splits, splits)."""
    splits = arguments[3] if len(arguments) > 3 else []
    elements = whole.numel()
    own = splits[group.rank()] * (elements // whole.shape[0]) if splits and elements else elements // group.size()
    return (elements - own) * whole.element_size()
