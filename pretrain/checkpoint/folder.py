"""Checkpoint folders on disk: how one is published, found, verified and retired.

Writing happens in ``.tmp-...``. The last file to be written there, after every other one is on disk, is
``manifest.json``, which lists their sizes and checksums; then the folder is renamed to ``step-00000100``.
One of that name without a manifest was damaged afterwards. Deleting begins with a rename too, to ``.old-...``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.checkpoint.manifest import manifest_digest as manifest_digest
from pretrain.checkpoint.manifest import parse, to_text
from pretrain.errors import CheckpointError
from pretrain.files import sync_folder, write_synced

MANIFEST = "manifest.json"
STATE = "state.json"
LATEST = "latest"
_NAME = re.compile(r"^step-(\d{8,})$")


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` is published."""
    return root / f"step-{step:08d}"


def temporary_folder(root: Path, step: int) -> Path:
    """Where it is written before that."""
    return root / f".tmp-step-{step:08d}"


def retired_folder(root: Path, step: int) -> Path:
    """Where it goes before it is deleted: a kill halfway leaves nothing that is taken for a checkpoint."""
    return root / f".old-step-{step:08d}"


def published(root: Path) -> list[Path]:
    """Published checkpoints below ``root``, oldest first; damaged ones too, even those without a manifest."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.match(path.name) and path.is_dir()), key=step_of)


def step_of(folder: Path) -> int:
    """Step in the name of a published folder; -1 for any other."""
    match = _NAME.match(folder.name)
    return int(match.group(1)) if match else -1


def checksum(path: Path) -> str:
    """blake2b-128 of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with outside.reading(path) as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def make_empty(folder: Path) -> None:
    """Create ``folder``; what a crash left in it goes."""
    outside.delete(folder)
    folder.mkdir(parents=True)


def describe(path: Path) -> dict[str, Any]:
    """Flush one file to disk, and return its size and checksum."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "blake2b": checksum(path)}


def publish(temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, rename the folder into place, and point ``latest`` at it."""
    write_synced(temporary / MANIFEST, to_text(manifest))
    sync_folder(temporary)
    if final.exists() or final.is_symlink():  # a damaged one, or one of a run that went back by hand
        _delete(final)
    os.rename(temporary, final)
    sync_folder(final.parent)
    _point_latest(final)


def _point_latest(final: Path) -> None:
    pointer = final.parent / f".{LATEST}.tmp"
    write_synced(pointer, final.name + "\n")
    os.replace(pointer, final.parent / LATEST)
    sync_folder(final.parent)


def read_manifest(folder: Path, option: str | None = "checkpoint.resume=") -> dict[str, Any]:
    """The manifest of a published checkpoint.

    Args:
        option: how another checkpoint is given to the program, for its advice; None = without advice.

    Raises:
        CheckpointError: there is none, or it is not ours.
    """
    path = folder / MANIFEST
    if folder.is_file():
        raise CheckpointError(f"checkpoint {folder} is a file, expected a folder{_others(folder.parent)}")
    if not folder.is_dir():
        is_word = option == "checkpoint.resume=" and len(folder.parts) == 1
        words = ", expected auto, never or the path of a checkpoint" if is_word else ""
        raise CheckpointError(f"checkpoint {folder} does not exist{words}{_others(folder.parent)}")
    if not path.is_file():
        if step_of(folder) >= 0 and (folder / STATE).is_file():
            raise CheckpointError(f"checkpoint is damaged: {path} is missing{remedy(folder, option)}")
        inside = _others(folder, "inside it") or _others(folder / "checkpoints", "inside its folder checkpoints")
        others = inside or _others(folder.parent)
        raise CheckpointError(f"{folder} holds no {MANIFEST}, so it is no published checkpoint of this program{others}")
    try:
        return parse(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{remedy(folder, option)}") from None


def remedy(folder: Path, option: str | None = "checkpoint.resume=") -> str:
    """What to try instead of a damaged checkpoint: the newest other one there that has its files in their sizes."""
    if option is None:
        return ""
    for other in reversed(published(folder.parent)):
        if other != folder and _has_its_files(other):
            return f"; try {option}{other}"
    return ""


def _has_its_files(folder: Path) -> bool:
    try:
        files = parse(folder / MANIFEST)["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (CheckpointError, OSError):
        return False


def _others(root: Path, where: str = "published there") -> str:
    have = [path.name for path in published(root) if (path / MANIFEST).is_file()]
    return f"; {where}: {', '.join(have[-5:])}" if have else ""


def damage(folder: Path, manifest: dict[str, Any], share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with the files of a checkpoint, naming each; ``share`` = (rank, ranks) splits the work."""
    rank, ranks = share
    found = []
    for name in sorted(manifest["files"])[rank::ranks]:
        path, wanted = folder / name, manifest["files"][name]
        if not path.is_file():
            found.append(f"{path} is missing")
        elif path.stat().st_size != wanted["bytes"]:
            found.append(f"{path} has {path.stat().st_size} bytes, expected {wanted['bytes']}")
        elif checksum(path) != wanted["blake2b"]:
            found.append(f"{path} does not match its checksum")
    return found


def retire(newest: Path, keep_last: int, keep_every: int) -> list[Path]:
    """Delete checkpoints older than ``newest`` beyond the last ``keep_last`` and the multiples of ``keep_every``.

    ``keep_last`` counts ``newest``, which has just been written and is never deleted; 0 keeps all. Those of later
    steps are damaged, or of a run that went back by hand: they neither count nor go.

    Returns:
        Where the deleted ones were.
    """
    if keep_last == 0:
        return []
    old = [folder for folder in published(newest.parent) if step_of(folder) < step_of(newest)]
    beyond = old[: max(0, len(old) - (keep_last - 1))]
    retired = [folder for folder in beyond if not (keep_every and step_of(folder) % keep_every == 0)]
    for folder in retired:
        _delete(folder)
    return retired


def drop_after(root: Path, step: int) -> None:
    """Delete checkpoints of steps after ``step``: the run goes on from there by another way."""
    newer = [folder for folder in published(root) if step_of(folder) > step]
    if newer:
        _point_latest(step_folder(root, step))
    for folder in newer:
        _delete(folder)


def _delete(folder: Path) -> None:
    gone = retired_folder(folder.parent, step_of(folder))
    outside.delete(gone)
    os.rename(folder, gone)
    outside.delete(gone)


def clean(root: Path) -> None:
    """Delete what killed saves and deletions left, whatever step they were at."""
    for pattern in (".tmp-step-*", ".old-step-*", f".{LATEST}.tmp"):
        for path in root.glob(pattern):
            outside.delete(path)


def free_bytes(root: Path) -> int:
    """Free space where checkpoints go."""
    return shutil.disk_usage(root).free
