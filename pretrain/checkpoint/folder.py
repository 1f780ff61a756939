"""Checkpoint folders on disk: how one is published, found, verified and retired.

A folder ``step-00000100`` counts only if it holds ``manifest.json``, which is written last, after
every other file is on disk; it lists their sizes and checksums. Writing happens in ``.tmp-...``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError

FORMAT = "smet-checkpoint"
VERSION = 1
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


def published(root: Path) -> list[Path]:
    """Published checkpoints below ``root``, oldest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _NAME.match(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Step in the name of a published folder; -1 for any other."""
    match = _NAME.match(folder.name)
    return int(match.group(1)) if match else -1


def checksum(path: Path) -> str:
    """blake2b-128 of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def sync_folder(path: Path) -> None:
    """Flush a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_empty(folder: Path) -> None:
    """Create ``folder``; what a crash left in it goes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def describe(path: Path) -> dict[str, Any]:
    """Flush one file to disk, and return its size and checksum."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "blake2b": checksum(path)}


def publish(temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, rename the folder into place, and point ``latest`` at it."""
    write_synced(temporary / MANIFEST, json.dumps(manifest, indent=1))
    sync_folder(temporary)
    if final.exists():  # a torn or retired folder of the same step: a published one is never written again
        shutil.rmtree(final)
    os.rename(temporary, final)
    sync_folder(final.parent)
    pointer = final.parent / f".{LATEST}.tmp"
    write_synced(pointer, final.name + "\n")
    os.replace(pointer, final.parent / LATEST)
    sync_folder(final.parent)


def write_synced(path: Path, text: str) -> None:
    """Write a file and flush it to disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published checkpoint.

    Raises:
        CheckpointError: there is none, or it is not ours.
    """
    path = folder / MANIFEST
    if folder.is_file():
        raise CheckpointError(f"checkpoint {folder} is a file, expected a folder{_others(folder.parent)}")
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} does not exist{_others(folder.parent)}")
    if not path.is_file():
        others = _others(folder, "inside it") or _others(folder.parent)
        raise CheckpointError(f"{folder} holds no {MANIFEST}, so it is no published checkpoint of this program{others}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version = manifest["format"], manifest["version"]
        manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged or not a manifest of this program") from None
    if (kind, version) != (FORMAT, VERSION):
        raise CheckpointError(f"{path} is {kind} version {version}, expected {FORMAT} version {VERSION}")
    if manifest.get("self") != manifest_digest(manifest):
        raise CheckpointError(f"{path} is damaged: its own checksum does not match")
    return dict(manifest)


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Checksum of a manifest's content, kept in its ``self`` entry."""
    rest = {key: value for key, value in manifest.items() if key != "self"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()


def _others(root: Path, where: str = "published there") -> str:
    have = [path.name for path in published(root)]
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


def retire(root: Path, keep_last: int, keep_every: int) -> list[Path]:
    """Delete checkpoints beyond the newest ``keep_last`` and the multiples of ``keep_every``.

    ``keep_last`` 0 keeps all. The newest is never deleted.

    Returns:
        The folders deleted.
    """
    if keep_last == 0:
        return []
    old = published(root)[: -max(1, keep_last)]
    retired = [folder for folder in old if not (keep_every and step_of(folder) % keep_every == 0)]
    for folder in retired:
        # The manifest goes first: a kill halfway leaves a folder that nobody takes for a checkpoint.
        (folder / MANIFEST).unlink()
        shutil.rmtree(folder)
    return retired


def free_bytes(root: Path) -> int:
    """Free space where checkpoints go."""
    return shutil.disk_usage(root).free
