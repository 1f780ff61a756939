"""Hugging Face datasets as sources, streamed: nothing is downloaded beyond what is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pretrain.errors import DataError, nearest

from .raw import Problem, Raw
from .sources import Source

_NETWORK = ("aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3")
"""Whose errors say nothing of what the data holds."""


def _open(name: str, config: str | None, split: str | None) -> tuple[Any, str | None]:
    """The dataset, and the split that it is: a dataset saved on its own may not say."""
    import datasets

    datasets.disable_progress_bars()
    try:
        for saved in ("dataset_info.json", "dataset_dict.json"):
            if os.path.exists(os.path.join(name, saved)):
                return _open_saved(name, datasets.load_from_disk(name), config, split)
        split = split or "train"
        return datasets.load_dataset(name, config, split=split, streaming=True), split
    except DataError:
        raise
    except Exception as error:
        # `datasets` raises many unrelated classes for names, splits and networks; all are the user's to mend.
        raise DataError(
            f"dataset {name} (config {config}, split {split}) cannot be opened: {_reason(error)}; expected a name on "
            "the Hugging Face hub or a local path, and one of its configs and splits"
        ) from None


def _open_saved(name: str, data: Any, config: str | None, split: str | None) -> tuple[Any, str | None]:
    """What `save_to_disk` wrote: one split, or several by name."""
    if config is not None:
        raise DataError(f"dataset {name} is a saved one, which has no configurations; leave --dataset-config out")
    if isinstance(data, dict):
        chosen = split or ("train" if "train" in data or len(data) != 1 else next(iter(data)))
        if chosen not in data:
            raise DataError(
                f"dataset {name} has no split '{chosen}'{nearest(chosen, data)}, only {', '.join(data)}; choose with "
                "--split"
            )
        return data[chosen].to_iterable_dataset(), chosen
    own = None if data.split is None else str(data.split)
    if split is not None and split != own:
        named = f"the split '{own}'" if own else "a single split that has no name"
        raise DataError(f"dataset {name} is {named}, --split asks for '{split}'; leave --split out to read it")
    return data.to_iterable_dataset(), own


def dataset_sources(name: str, config: str | None, split: str | None) -> list[Source]:
    """One source per shard of the dataset."""
    data, split = _open(name, config, split)
    shards = max(1, getattr(data, "num_shards", 1))
    return [Source(path=name, kind="dataset", dataset=(config, split), shard=(n, shards)) for n in range(shards)]


def first_row(source: Source) -> dict[str, Any]:
    """The first row of a dataset, to see its columns; empty where there is none."""
    assert source.dataset is not None
    try:
        return next(iter(_open(source.path, *source.dataset)[0]), {})
    except DataError:
        raise
    except Exception:
        # Reading reports what is wrong with it.
        return {}


def read_dataset(source: Source, columns: list[str]) -> Iterator[Raw]:
    """Rows of one shard; the position is the row's number in the shard."""
    assert source.dataset is not None
    data, _ = _open(source.path, *source.dataset)
    number, shards = source.shard
    if shards > 1:
        data = data.shard(num_shards=shards, index=number, contiguous=True)
    row = -1
    try:
        for row, values in enumerate(data):
            yield Raw(source, row, {name: values[name] for name in columns if name in values})
    except Exception as error:
        # As above: reading may fail in any of a dozen libraries.
        if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.partition(".")[0] in _NETWORK:
            raise DataError(
                f"{source.label} cannot be reached after row {row}: {_reason(error)}; start the same command again to "
                "go on"
            ) from None
        yield Raw(source, row + 1, Problem("corrupt file", f"{_reason(error)}; the rows that follow are lost"))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
