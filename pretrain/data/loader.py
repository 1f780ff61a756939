"""From sample numbers to batches of one data-parallel rank.

Position is one number, the samples the whole run has consumed. Which samples a global batch holds
depends neither on the number of ranks nor on the micro-batch size, so a run may stop and go on at
another layout without skipping or repeating any.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from pretrain.data.corpus import Corpus

FILLER = -100
"""Token id of rows without a sample."""


class BatchLoader:
    """Batches of one data-parallel rank; reads the next global batch ahead in one thread.

    Args:
        corpus: where samples come from.
        micro_batch_size: samples per micro-batch on one rank.
        accumulation: micro-batches per optimizer step.
        dp_rank, dp_size: place among the data-parallel ranks.
    """

    def __init__(self, corpus: Corpus, micro_batch_size: int, accumulation: int, dp_rank: int, dp_size: int):
        self.corpus = corpus
        self.micro_batch_size = micro_batch_size
        self.accumulation = accumulation
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch-reader")
        self._ahead: tuple[int, Future[list[torch.Tensor]]] | None = None

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step over all ranks."""
        return self.micro_batch_size * self.accumulation * self.dp_size

    def batches(self, consumed_samples: int) -> list[torch.Tensor]:
        """The micro-batches of the step that starts after ``consumed_samples`` samples.

        Returns:
            ``accumulation`` int64 tensors ``(micro_batch_size, seq_length + 1)``; inputs are
            ``[:, :-1]``, targets ``[:, 1:]``.

        Raises:
            DataError: a sample is bad, or an index has turned out to be damaged; perhaps on this rank only.
        """
        self.corpus.settle(wait=False)
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead and ahead[0] == consumed_samples else self._read(consumed_samples)
        following = consumed_samples + self.global_batch_size
        self._ahead = (following, self._reader.submit(self._read, following))
        return batch

    def _read(self, consumed_samples: int) -> list[torch.Tensor]:
        size = self.micro_batch_size
        starts = (consumed_samples + (j * self.dp_size + self.dp_rank) * size for j in range(self.accumulation))
        return [self._stack(range(start, start + size)) for start in starts]

    def _stack(self, numbers: range) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.corpus.sample(number) for number in numbers]))

    def eval_batches(self, count: int) -> Iterator[torch.Tensor]:
        """The first ``count`` samples, dealt over the ranks: the same set whatever the number of ranks.

        Yields:
            int64 ``(micro_batch_size, seq_length + 1)``, equally many on every rank. Rows that no sample
            is left for are filled with ``FILLER``, which costs no loss (``pretrain.models.functions.IGNORED``).
        """
        chunk = self.micro_batch_size * self.dp_size
        for start in range(0, count, chunk):
            first = start + self.dp_rank * self.micro_batch_size
            batch = torch.full((self.micro_batch_size, self.corpus.seq_length + 1), FILLER)
            numbers = range(first, min(first + self.micro_batch_size, count))
            if numbers:
                batch[: len(numbers)] = self._stack(numbers)
            yield batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(cancel_futures=True)
