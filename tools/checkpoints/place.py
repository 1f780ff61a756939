"""Output folders that appear whole or not at all.

A tool writes into a hidden folder beside the output, lists what it wrote in ``origin.json``, and renames
the folder into place. Only a folder that such a list describes completely is ever replaced.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.errors import CheckpointError
from pretrain.files import sync_folder, write_synced

ORIGIN = "origin.json"


def require_free(out: Path, overwrite: bool) -> None:
    """Check that ``out`` may be written, before any work is done.

    Raises:
        CheckpointError: something is there and ``overwrite`` is not given, or it is not a tool's own output.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise CheckpointError(f"output {out} is not a folder; choose another OUT")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"output folder {out} exists and is not empty; choose another OUT, or add --overwrite")
    if foreign := sorted(_files(out) - _listed(out)):
        raise CheckpointError(
            f"output folder {out} holds {foreign[0]}, which this tool did not write, so --overwrite will not "
            "replace the folder; remove it yourself, or choose another OUT"
        )


@contextmanager
def new_folder(out: Path, origin: dict[str, Any]) -> Iterator[Path]:
    """A hidden folder to write into; it becomes ``out`` when the block ends well, and is removed when not.

    Args:
        origin: where the content comes from; written to ``origin.json`` beside the list of files.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        write_synced(temporary / ORIGIN, json.dumps({**origin, "files": sorted(_files(temporary))}, indent=1) + "\n")
        sync_folder(temporary)
        _move_into_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(temporary, out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _listed(folder: Path) -> set[str]:
    try:
        return {*outside.read_json(folder / ORIGIN)["files"], ORIGIN}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
