"""The loss of a model in one process, as the ranks of its run compute it together: batch by batch, sum by sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import torch
from torch import Tensor

from pretrain.data.corpus import Corpus
from pretrain.data.loader import BatchLoader
from pretrain.evaluate import evaluate
from pretrain.layout import Layout
from pretrain.precision import DTYPES
from smet.compute import Decided
from smet.linear import SparseLinear
from smet.measured import case_of

from .model import Loaded

Batches = Sequence[Tensor]
"""One micro-batch ``(b, s + 1)`` of each data-parallel rank."""


class RanksInTurn:
    """What ``evaluate`` needs of an engine and of a loader, for all data-parallel ranks one after the other.

    Args:
        model: has ``loss(tokens)``.
        loaders: of the ranks.
        single: ranks' losses are summed in fp32, as a pipeline does, and not exactly.
    """

    def __init__(self, model: Any, loaders: Sequence[BatchLoader], device: torch.device, single: bool = False):
        self.model, self.loaders, self.device, self.single = model, loaders, device, single
        self.micro_batch_size, self.dp_size = loaders[0].micro_batch_size, len(loaders)

    def eval_batches(self, count: int) -> Iterator[Batches]:
        """The batches of ``BatchLoader.eval_batches``, of all ranks."""
        return zip(*(loader.eval_batches(count) for loader in self.loaders), strict=True)

    @torch.no_grad()
    def loss(self, batches: Batches) -> float:
        """Mean over the ranks, summed as ``Layout.mean`` does."""
        losses = torch.stack([self.model.loss(tokens.to(self.device)).float() for tokens in batches])
        total = losses.cumsum(0)[-1] if self.single else losses.double().sum()
        return float(total) / self.dp_size


def loss_of(loaded: Loaded, corpus: Corpus, samples: int, micro: int, ranks: int, single: bool = False) -> float:
    """Mean loss over the first ``samples`` samples of ``corpus``, by the run's own ``evaluate``.

    Args:
        micro: samples of a micro-batch.
        ranks: data-parallel ranks of the run.
        single: see ``RanksInTurn``.

    Raises:
        DataError: a sample cannot be read.
    """
    with ExitStack() as stack:
        loaders = [BatchLoader(corpus, micro, 1, rank, ranks) for rank in range(ranks)]
        for loader in loaders:
            stack.enter_context(closing(loader))
        turns: Any = RanksInTurn(loaded.model, loaders, loaded.device, single)
        alone = Layout(1, 0, 1, 0, loaded.device, None, None)
        return evaluate(turns, turns, samples, alone)["validation_loss"]


def multiply_as_before(layers: Mapping[str, SparseLinear], chosen: Mapping[str, str], tokens: int, name: str) -> None:
    """Let the backends multiply that the run chose, where it did for such inputs.

    Args:
        chosen: backend by shape, of the checkpoint's manifest.
        tokens: of a micro-batch.
        name: of the precision.
    """
    for layer in layers.values():
        if (found := chosen.get(str(case_of(layer, tokens, DTYPES[name])))) is not None:
            layer.decided = Decided(found, tokens, DTYPES[name])
