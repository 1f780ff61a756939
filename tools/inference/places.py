"""Where the files lie that a run's settings name: they count from the folder in which the run was started."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from pretrain.config.schema import Source
from pretrain.data.manifest import Manifest, read_manifest

from .model import Loaded


def in_run(loaded: Loaded, name: str, suffix: str = "") -> str:
    """``name`` as it is found from here: as the run's settings have it, or below the folder the run was started in.

    Args:
        suffix: of the file that has to be there.
    """
    if loaded.run is None or Path(name + suffix).exists() or Path(name).is_absolute():
        return name
    folder, output = loaded.place.resolve().parent.parent, Path(loaded.run.train.output_dir)
    if not output.parts or output.is_absolute() or folder.parts[-len(output.parts) :] != output.parts:
        return name
    other = Path(*folder.parts[: -len(output.parts)]) / name
    return str(other) if Path(f"{other}{suffix}").exists() else name


def blend(loaded: Loaded, split: str) -> list[Source]:
    """The corpora of the run's ``train`` or ``validation`` blend, as found from here; of a curriculum, its last."""
    if loaded.run is None:
        return []
    data = loaded.run.data
    given: tuple[Source, ...] = getattr(data, split)
    if not given and split == "train" and data.curriculum:
        given = data.curriculum[-1].blend
    return [dataclasses.replace(source, path=in_run(loaded, source.path, ".bin")) for source in given]


def manifests(loaded: Loaded) -> Iterator[tuple[Path, Manifest]]:
    """Folder and manifest of each corpus of the run that still lies where it was."""
    for split in ("validation", "train"):
        for source in blend(loaded, split):
            if (found := read_manifest(source.path)) is not None:
                yield Path(source.path).parent, found
