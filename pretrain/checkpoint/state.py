"""``state.json``: the small state of a run beside its vectors, checked before anything leans on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.checkpoint import folder as folders
from pretrain.errors import CheckpointError
from smet.optim.ages import CODES

_KINDS: dict[str, tuple[type, ...]] = {
    "step": (int,), "consumed_samples": (int,), "topology": (dict,), "callbacks": (dict,),
    "data_fingerprint": (str, type(None)), "probe": (dict, type(None)), "torch_rng": (str,), "config": (dict,),
}  # fmt: skip


def read_state(path: Path) -> dict[str, Any]:
    """The small state of the verified checkpoint at ``path``.

    Raises:
        CheckpointError: it is not what a run writes; names the entry.
    """
    file = path / folders.STATE
    try:
        state = outside.read_json(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: it is no JSON ({error})") from None
    if problems := _problems(state):
        raise CheckpointError(f"{file} is no state of a run: {problems[0]}")
    return dict(state)


def _problems(state: Any) -> list[str]:
    if not isinstance(state, dict):
        return [f"it holds {type(state).__name__}, expected a mapping"]
    found = [
        f"{key} is {_kind(state.get(key))}, expected {' or '.join(kind.__name__ for kind in kinds)}"
        for key, kinds in _KINDS.items()
        if not isinstance(state.get(key), kinds) or isinstance(state.get(key), bool)
    ]
    if found:
        return found
    found += [f"{key} is not a count" for key in ("step", "consumed_samples") if not _is_count(state[key])]
    sections = {name: part for name, part in state["config"].items() if name != "callbacks"}
    found += [f"config.{name} is {_kind(part)}" for name, part in sections.items() if not isinstance(part, dict)]
    topology, probe = state["topology"], state["probe"]
    found += [
        f"topology.{key} is not a count" for key in ("steps_done", "updates_done") if not _is_count(topology.get(key))
    ]
    ages = topology.get("ages")
    births = ages.get("births") if isinstance(ages, dict) else None
    if not isinstance(births, list) or len(births) != CODES or not all(b is None or _is_count(b) for b in births):
        found.append(f"topology.ages.births is not a list of {CODES} steps")
    if not isinstance(topology.get("last_code"), int) or not 0 <= topology["last_code"] < CODES:
        found.append(f"topology.last_code is not a number below {CODES}")
    if probe is not None and not (
        isinstance(probe.get("loss"), (int, float))
        and isinstance(probe.get("tokens"), list)
        and all(_is_count(token) for token in probe["tokens"])
    ):
        found.append("probe is not a loss and a list of tokens")
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _kind(value: Any) -> str:
    return "missing" if value is None else type(value).__name__
