"""Hugging Face datasets as sources, streamed: nothing is downloaded beyond what is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pretrain.errors import DataError
from tools.corpus.readers import Problem, Raw
from tools.corpus.sources import Source


def _open(name: str, config: str | None, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if os.path.isdir(name) and os.path.exists(os.path.join(name, "dataset_info.json")):
            return datasets.load_from_disk(name).to_iterable_dataset()
        if os.path.isdir(name) and os.path.exists(os.path.join(name, "dataset_dict.json")):
            return datasets.load_from_disk(name)[split].to_iterable_dataset()
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:
        # `datasets` raises many unrelated classes for names, splits and networks; all are the user's to mend.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"dataset {name} (config {config}, split {split}) cannot be opened: {reason}; expected a name on the "
            "Hugging Face hub or a local path, and one of its configs and splits"
        ) from None


def dataset_sources(name: str, config: str | None, split: str) -> list[Source]:
    """One source per shard of the dataset."""
    shards = max(1, getattr(_open(name, config, split), "num_shards", 1))
    return [Source(path=name, kind="dataset", dataset=(config, split), shard=(n, shards)) for n in range(shards)]


def first_row(source: Source) -> dict[str, Any]:
    """The first row of a dataset, to see its columns; empty where there is none."""
    assert source.dataset is not None
    try:
        return next(iter(_open(source.path, *source.dataset)), {})
    except DataError:
        raise
    except Exception:
        # Reading reports what is wrong with it.
        return {}


def read_dataset(source: Source, columns: list[str]) -> Iterator[Raw]:
    """Rows of one shard; the position is the row's number in the shard."""
    assert source.dataset is not None
    config, split = source.dataset
    data = _open(source.path, config, split)
    number, shards = source.shard
    if shards > 1:
        data = data.shard(num_shards=shards, index=number, contiguous=True)
    row = 0
    try:
        for row, values in enumerate(data):
            yield Raw(source, row, {name: values[name] for name in columns if name in values})
    except Exception as error:
        # As above: reading may fail in any of a dozen libraries.
        yield Raw(source, row, Problem("corrupt file", (str(error).splitlines() or [type(error).__name__])[0]))
