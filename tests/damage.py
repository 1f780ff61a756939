"""Damage to folders of files, whoever does it: seeded mutations, and planted code that tells if it ever ran.

``mutate`` is what sweeps drive: a pure function of a seed, over checkpoints, corpora, run files or any other folder.
Where a folder lists checksums, a second step (``mend_checkpoint``) makes them anew, as somebody with intent would.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.checkpoint.folder import MANIFEST, describe, manifest_digest
from pretrain.outside import read_json


class Payload:
    """Unpickled, it makes the file ``marker``: then code from a file has run."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def pickled(marker: Path) -> bytes:
    """A pickle that runs code."""
    return pickle.dumps(Payload(marker))


def torch_file(marker: Path, path: Path, size: int = 0) -> Path:
    """A file of ``torch.save``'s format whose pickle runs code, filled up to ``size`` bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(marker))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    if size:
        room = size - path.stat().st_size - 30 - 46 - 2 * len("archive/filler")  # two headers, each with the name
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/filler", bytes(room))
    return path


def numpy_file(marker: Path) -> bytes:
    """An ``.npy`` file of one object, which NumPy would unpickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickled(marker)


def yaml_tag(marker: Path) -> str:
    """YAML that a loader for Python objects would run."""
    return f'!!python/object/apply:os.system ["touch {marker}"]'


def bombs() -> dict[str, str]:
    """Short texts that stand for more than a machine holds, by name; JSON and YAML read the last two alike."""
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    merged = [f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    return {
        "aliases": "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels]) + "\n",
        "merges": "\n".join(["b0: &b0 {x: 1}", *merged]) + "\n",
        "nesting": "[" * 100_000 + "]" * 100_000,
        "number": "1" * 100_000,
    }


def flip(content: bytes, rng: random.Random) -> bytes:
    """Other bits in one to eight bytes."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        made[rng.randrange(len(made))] ^= rng.randrange(1, 256)
    return bytes(made)


def truncate(content: bytes, rng: random.Random) -> bytes:
    """Cut off anywhere; sometimes all of it."""
    return content[: rng.choice([0, rng.randrange(len(content))])]


def swap(content: bytes, rng: random.Random) -> bytes:
    """Two stretches in each other's place."""
    width = rng.randint(1, max(1, len(content) // 4))
    first, second = sorted(rng.randrange(max(1, len(content) - width)) for _ in range(2))
    second = max(second, first + width)
    made = content[:first] + content[second : second + width] + content[first + width : second]
    return made + content[first : first + width] + content[second + width :]


def grow(content: bytes, rng: random.Random) -> bytes:
    """Bytes put in between, or at the end."""
    at = rng.choice([len(content), rng.randrange(len(content) + 1)])
    return content[:at] + rng.randbytes(rng.randint(1, 200)) + content[at:]


def blank(content: bytes, rng: random.Random) -> bytes:
    """A stretch of zeros, as a disk leaves it that lost power."""
    begin = rng.randrange(len(content))
    width = min(rng.randint(1, 4096), len(content) - begin)
    return content[:begin] + bytes(width) + content[begin + width :]


def renumber(content: bytes, rng: random.Random) -> bytes:
    """Another number in place of one that is spelled out; for text files."""
    digits = [at for at, byte in enumerate(content) if byte in b"0123456789"]
    if not digits:
        return flip(content, rng)
    at = rng.choice(digits)
    number = rng.choice([b"-1", b"0", b"1e999", b"99999999999999999999", b"null", b"[]", b'"x"', b"0.5", b"true"])
    return content[:at] + number + content[at + 1 :]


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, truncate, swap, grow, blank, renumber)

OF_FILES = ("delete", "rename", "plant", "link", "pipe", "folder")


def mutate(folder: Path, rng: random.Random, marker: Path) -> str:
    """Do one kind of damage to one file below ``folder``; says what.

    Args:
        marker: what planted code would make.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = rng.choice(files)
    how = rng.choice(
        [*[change.__name__ for change in CHANGES] * 2, "delete", "rename", "plant", "link", "pipe", "folder"]
    )
    change = {one.__name__: one for one in CHANGES}.get(how)
    if change is not None:
        content = path.read_bytes()
        path.write_bytes(change(content, rng) if content else b"x")
    elif how == "rename":
        other = rng.choice(files)  # in place of another one, or under a new name
        shutil.move(path, other if other != path else path.with_name(path.name + ".old"))
    else:
        path.unlink()
        if how == "plant":
            path.write_bytes(rng.choice([pickled(marker), numpy_file(marker), yaml_tag(marker).encode()]))
            if rng.random() < 0.5:
                path.unlink()
                torch_file(marker, path)
        elif how == "link":
            path.symlink_to(rng.choice(["/etc/passwd", "/dev/zero", path.name, str(folder)]))
        elif how == "pipe":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()
    return f"{how} {path.relative_to(folder)}"


def mend_checkpoint(folder: Path, **changes: Any) -> None:
    """Make the checksums of a published checkpoint's manifest fit its files again.

    Args:
        changes: entries of the manifest to put in.
    """
    manifest = {**read_json(folder / MANIFEST), **changes}
    if not changes:
        manifest["files"] = {
            name: describe(folder / name) if (folder / name).is_file() else entry
            for name, entry in manifest["files"].items()
        }
    (folder / MANIFEST).write_text(json.dumps({**manifest, "self": manifest_digest(manifest)}))
