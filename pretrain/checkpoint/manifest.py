"""The manifest of a checkpoint: what wrote it, how, and size and checksum of each file."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError

FORMAT = "smet-checkpoint"
VERSION = 1


def make_manifest(step: int, layout: dict[str, int], config: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint that this program writes now.

    Args:
        layout: degrees and ZeRO stage that it is written at.
        config: settings of the run; those of an imported model only as far as it decides them.
        files: size and checksum by name, as ``folder.describe`` gives them.
    """
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "layout": layout,
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "git": git_revision(),
        "config": config,
        "files": files,
    }
    return {**manifest, "self": manifest_digest(manifest)}


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Checksum of a manifest's content, kept in its ``self`` entry."""
    rest = {key: value for key, value in manifest.items() if key != "self"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()


def to_text(manifest: dict[str, Any]) -> str:
    """The content of the file."""
    return json.dumps(manifest, indent=1)


def parse(path: Path) -> dict[str, Any]:
    """The manifest in the file ``path``.

    Raises:
        CheckpointError: it is damaged, or not ours.
    """
    try:
        text = path.read_bytes().decode("utf-8")  # opened as text, a carriage return would read as a line's end
        manifest = json.loads(text)
        kind, number = manifest["format"], manifest["version"]
        manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged or not a manifest of this program") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if (kind, number) != (FORMAT, VERSION):
        raise CheckpointError(f"{path} is {kind} version {number}, expected {FORMAT} version {VERSION}")
    # The digest tells any change of the content; comparing the text finds a changed blank too.
    same = text in (to_text(manifest), json.dumps(manifest))
    if manifest.get("self") != manifest_digest(manifest) or not same:
        raise CheckpointError(f"{path} is damaged: its own checksum does not match")
    return dict(manifest)


def git_revision() -> str | None:
    """Revision of the checkout this program runs from, or None outside one."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
