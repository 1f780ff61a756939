"""The manifest of a checkpoint: what wrote it, how, and size and checksum of each file."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.errors import CheckpointError

FORMAT = "smet-checkpoint"
VERSION = 1
LIMIT = 256 << 20
"""Bytes of a manifest; one of ten thousand ranks has a hundredth."""
_FILE = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_NEEDED = (".metadata", "state.json")


def make_manifest(
    step: int, layout: dict[str, int], config: dict[str, Any], files: dict[str, Any],
    products: dict[str, Any] | None = None, permutation: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The manifest of a checkpoint that this program writes now.

    Args:
        layout: degrees and ZeRO stage that it is written at.
        config: settings of the run; those of an imported model only as far as it decides them.
        files: size and checksum by name, as ``folder.describe`` gives them.
        products: who multiplied on what, where that was measured (see ``pretrain.products``).
        permutation: digest of the permutations of features, where these are permuted (see ``checkpoint.permutation``).
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
        **({"products": products} if products else {}),
        **({"permutation": permutation} if permutation else {}),
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
        # Opened as text, a carriage return would read as a line's end.
        text = outside.read_bytes(path, LIMIT).decode("utf-8")
        manifest = outside.parse_json(text)
        kind, number = manifest["format"], manifest["version"]
        manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged or not a manifest of this program") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if (kind, number) != (FORMAT, VERSION):
        found = f"{kind} version {number}" if isinstance(kind, str) and isinstance(number, int) else "something else"
        raise CheckpointError(f"{path} is {found}, expected {FORMAT} version {VERSION}")
    # The digest tells any change of the content; comparing the text finds a changed blank too.
    try:
        same = text in (to_text(manifest), json.dumps(manifest))
        same = same and manifest.get("self") == manifest_digest(manifest)
    except RecursionError:
        same = False
    if not same:
        raise CheckpointError(f"{path} is damaged: its own checksum does not match")
    if problem := _problem(manifest):
        raise CheckpointError(f"{path} is refused: {problem}")
    return dict(manifest)


def _problem(manifest: dict[str, Any]) -> str:
    """What is wrong with a manifest whose checksum is right, since somebody made it so; empty if nothing is."""
    kinds = {"step": int, "written": str, "layout": dict, "versions": dict, "config": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            return f"its {key} is {type(manifest.get(key)).__name__}, expected {kind.__name__}"
    if not isinstance(manifest.get("git"), (str, type(None))):
        return "its git is no text"
    if not isinstance(manifest.get("permutation"), (str, type(None))):
        return "its permutation is no digest"
    products = manifest.get("products")
    if products is not None and not (isinstance(products, dict) and isinstance(products.get("chosen"), dict)):
        return "its products do not say what was chosen"
    for name, entry in manifest["files"].items():
        # A path would have files read that are none of this checkpoint's.
        if not _FILE.fullmatch(name):
            return f"it lists the file {name!r:.80}, expected names in the checkpoint's own folder"
        size = entry.get("bytes") if isinstance(entry, dict) else None
        if not isinstance(size, int) or size < 0 or not isinstance(entry.get("blake2b"), str):
            return f"it lists {name} without size or checksum"
    missing = [name for name in _NEEDED if name not in manifest["files"]]
    return f"it does not list {missing[0]}" if missing else ""


def git_revision() -> str | None:
    """Revision of the checkout this program runs from, or None outside one: an environment may lie in another's."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--show-prefix", "HEAD"]
    try:
        prefix, revision = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.splitlines()
        return None if prefix else revision
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
