"""``smet config show`` and ``smet config diff``: what a run file comes to, and in what two of them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.changes import Change, changes
from pretrain.config.yaml_text import to_yaml
from pretrain.numbers import short_count

from ..planner.budget import weights_of
from .origin import Origin, Resolved, resolve

COLUMN = 44


def shown(found: Resolved) -> str:
    """A run file with every key, and behind each where its value comes from. It loads to the same settings."""
    lines = [f"# {found.path}, resolved"]
    _mapping(found.config.to_dict(), "", found.origins, lines)
    return "\n".join([*lines, "", *(f"# {line}" for line in derived(found))])


def _mapping(plain: dict[str, Any], prefix: str, origins: dict[str, Origin], lines: list[str]) -> None:
    indent = "  " * prefix.count(".")
    for key, value in plain.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:")
            _mapping(value, f"{name}.", origins, lines)
            continue
        first, *rest = to_yaml({key: value}, short=isinstance(value, list)).rstrip("\n").split("\n")
        note = f"# {origins[name]}"
        if rest:  # folded, or a list with text in it that is: a comment within would become text
            lines.append(f"{indent}{note}")
            lines += [f"{indent}{line}" for line in (first, *rest)]
        else:
            lines.append(f"{indent}{first}".ljust(COLUMN) + f"  {note}")
            lines += [f"{indent}{line}" for line in rest]


def derived(found: Resolved) -> list[str]:
    """What follows from the settings and stands nowhere among them."""
    config, (total, active) = found.config, weights_of(found.config)
    step = config.train.global_batch_size * config.data.seq_length
    tokens = step * config.train.steps
    return [
        f"{short_count(total)} weights, of which {short_count(active)} are active",
        f"{step:,} tokens per step, {short_count(tokens)} in all: {tokens / total:.3g} per weight,"
        f" {tokens / active:.3g} per active weight",
    ]


def difference(first: Path, second: Path) -> list[Change]:
    """Every setting in which two run files, or runs, differ once they are resolved."""
    return changes(resolve(first).config.to_dict(), resolve(second).config.to_dict())


def in_words(change: Change) -> str:
    """One difference, and whether a run that goes on may make it."""
    may = "" if change.allowed else "   (in a branch only)" if change.fits else "   (another run)"
    return f"{change}{may}"
