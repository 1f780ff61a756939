"""What a rank tells of itself when it comes, and what must not differ between ranks."""

from __future__ import annotations

import os
import platform
import socket
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig
from pretrain.environment import Place

Hello = dict[str, Any]

ROOT = Path(__file__).parent.parent.parent


def hello(place: Place, config: RunConfig) -> Hello:
    """All that rank 0 compares, as plain JSON."""
    return {
        "rank": place.rank,
        "world": place.world,
        "local": place.local,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "gpus": any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/kfd")),
        "versions": {
            "python": platform.python_version(),
            "torch": _version("torch"),
            "deepspeed": _version("deepspeed"),
        },
        "code": _code(),
        "settings": config.to_dict(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _code() -> dict[str, int]:
    """Checksum of each source file: ranks that run different code wait in different calls."""
    found = {}
    for package in ("smet", "pretrain"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".c", ".cpp"):
                found[str(path.relative_to(ROOT))] = zlib.crc32(path.read_bytes())
    return found


def name_of(one: Hello) -> str:
    """``rank 3 on host-b (process 4711)``."""
    return f"rank {one.get('rank')} on {one.get('host')} (process {one.get('pid')})"


def is_whole(one: Any) -> bool:
    """Whether this is a hello, and not what a stranger sent."""
    kinds = {"rank": int, "world": int, "local": int, "host": str, "pid": int, "visible": str, "gpus": bool}
    kinds |= {"versions": dict, "code": dict, "settings": dict}
    return isinstance(one, dict) and all(isinstance(one.get(key), kind) for key, kind in kinds.items())


def is_of_another_run(one: Hello, first: Hello) -> bool:
    """Whether its settings say another run folder: it came to the wrong door."""
    return bool(_at(one, "train.output_dir") != _at(first, "train.output_dir"))


def difference(one: Hello, first: Hello) -> str:
    """In what ``one`` differs from rank 0 that it must not, with the remedy; empty: in nothing."""
    who, main = name_of(one), f"rank 0 on {first['host']}"
    if one["world"] != first["world"]:
        return (
            f"{who} says WORLD_SIZE {one['world']}, {main} says {first['world']}; start all ranks with the same, and "
            "one launcher"
        )
    for name in sorted({*one["versions"], *first["versions"]}):
        mine, other = one["versions"].get(name), first["versions"].get(name)
        if mine != other:
            return f"{who} has {name} {mine}, {main} has {other}; install the same on every host"
    files = sorted(key for key in {*one["code"], *first["code"]} if one["code"].get(key) != first["code"].get(key))
    if files:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        return (
            f"{who} runs other code than {main} ({', '.join(files[:3])}{more}); check the same revision out on every "
            "host"
        )
    keys = _differing(first["settings"], one["settings"])
    if keys:
        shown = "; ".join(f"{key}: {_at(first, key)!r} and {_at(one, key)!r}" for key in keys[:3])
        more = f"; and {len(keys) - 3} more" if len(keys) > 3 else ""
        return (
            f"{main} and {who} have different settings ({shown[:300]}{more}); give all ranks the same run file and "
            "overrides"
        )
    return ""


def is_there(one: Hello, others: list[Hello]) -> str:
    """Why ``one`` is not taken: its rank has come already; empty: it has not."""
    for other in others:
        if other["rank"] == one["rank"]:
            return (
                f"{name_of(one)} is there twice, {name_of(other)} came first; RANK differs for each process of a run: "
                "left over from another start, or a run that is started twice?"
            )
    return ""


def shares_a_gpu(one: Hello, others: list[Hello]) -> str:
    """With whom ``one`` would share its GPU; empty: with nobody."""
    for other in others:
        same = all(other[key] == one[key] for key in ("host", "visible", "local"))
        if same and one["gpus"] and _at(one, "train.device") != "cpu":
            return (
                f"{name_of(one)} and {name_of(other)} both have LOCAL_RANK {one['local']}, and would share a GPU; "
                "LOCAL_RANK counts the processes of a host from 0"
            )
    return ""


def _differing(first: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*first, *other}):
        mine, its = first.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(its, dict):
            found += _differing(mine, its, f"{prefix}{key}.")
        elif mine != its:
            found.append(prefix + key)
    return found


def _at(one: Hello, dotted: str) -> Any:
    value: Any = one["settings"]
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
