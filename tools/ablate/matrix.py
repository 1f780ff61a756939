"""The matrix file: which cells there are, each with the settings of an ordinary run.

A cell's settings are those of the run file that its size names as ``base``, if it names one; then the ``run``
section of the matrix, its size's own settings, what its method or branch base says about sparsity (or, below
``run``, about other sections), and its density, learning rate and seed; a later one wins.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig, config_from_dict
from pretrain.config.load import beside, load_config, merge, named_family
from pretrain.config.yaml_text import read_yaml
from pretrain.errors import ConfigError, nearest
from smet.fields import shown

from . import hypotheses, law, peers, questions, sections

PLAIN = ("peer", "then_dense")
"""Keys of a method that only plain torch knows: who trains it, and the share of a run after which it is dense."""
FORCED = {"guard": {"enabled": False}, "train": {"consistency_interval": 0}, "logging": {"interval": 50}}
"""The guard would leave out the very spikes that are to be measured."""


@dataclass(frozen=True)
class Cell:
    """One run of the matrix. ``kind`` is ``run`` or ``branches``; ``method`` names a method or a branch base."""

    name: str
    kind: str
    method: str
    density: float
    size: str
    seed: int
    lr: float
    settings: dict[str, Any]
    """Sections of a run file, without ``train.output_dir``."""
    measure: dict[str, Any]
    """What is measured on the way: the file's ``probe`` section, or its ``branches`` section."""
    plain: dict[str, Any] | None = None
    """Where plain torch trains it: the ``peer`` that does, ``then_dense``, or nothing; None = the program trains it."""
    tuned: bool = False
    """Whether ``lr`` is the best of those that were tried at another seed."""

    def config(self, folder: Path) -> RunConfig:
        """The run's settings in ``folder``, checked."""
        return config_from_dict(
            merge(self.settings, {"train": {"output_dir": str(folder)}}), (named_family(self.settings),)
        )

    def labels(self) -> dict[str, Any]:
        """What tells this cell from the others, as plain data."""
        own = {key: getattr(self, key) for key in ("name", "kind", "method", "density", "size", "seed", "lr")}
        return {**own, "tuned": True} if self.tuned else own


@dataclass(frozen=True)
class Matrix:
    """A matrix file, and the cells that it asks for, in its order."""

    content: dict[str, Any]
    cells: list[Cell]
    waiting: list[str] = dataclasses.field(default_factory=list)
    """Rows of questions whose cells are not known before their learning rate is."""


def load_matrix(
    path: Path, results: Sequence[Mapping[str, Any]] = (), only: Sequence[str] = (), quick: bool = False
) -> Matrix:
    """Read a matrix file and check the settings of every cell.

    Args:
        path: the file.
        results: of cells that are finished; they decide learning rates.
        only: names of questions; without any, all cells of the file.
        quick: only questions that are marked so.

    Raises:
        ConfigError: the file is missing or no YAML, or with every problem of its cells at once.
    """
    content = read_yaml(path)
    problems = [f"{path}: {problem}" for problem in sections.problems(content)]
    if problems:
        raise ConfigError(problems)
    for size in content["sizes"].values():
        if "base" in size:
            size["run"] = load_config(beside(path, size["base"])).to_dict()
    more = [*hypotheses.problems(content), *questions.problems(content), *law.problems(content)]
    problems += [f"{path}: {problem}" for problem in more]
    if problems:
        raise ConfigError(problems)
    problems += [f"{path}: methods, {name}: {text}" for name, keys in (content.get("methods") or {}).items()
                 for text in [*_peer_problems(keys, content), *_dense_problems(keys, content)]]  # fmt: skip
    asked = _asked(path, content, only, quick)
    groups = [] if only or quick else content.get("cells") or []
    cells = [cell for group in groups for cell in _group(group, content, problems)]
    cells += questions.cells(asked, content, results, partial(_question_cell, content))
    unique: dict[str, Cell] = {}
    for cell in cells:
        other = unique.setdefault(cell.name, cell)
        if dataclasses.replace(other, tuned=cell.tuned) != cell:
            both = f"of {other.method} and {cell.method}"
            problems.append(f"two cells would be named {cell.name}: {both}; rename a method, or round numbers less")
    for cell in unique.values():
        try:
            cell.config(Path("cell"))
        except ConfigError as error:
            problems += [f"cell {cell.name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems))[:20])
    return Matrix(content, list(unique.values()), questions.waiting(asked, content, results))


def _asked(path: Path, content: dict[str, Any], only: Sequence[str], quick: bool) -> list[questions.Question]:
    known = list(content.get("questions") or {})
    for name in only:
        if name not in known:
            raise ConfigError(
                f"{path} asks no question '{name}'{nearest(name, known) or '; it has ' + ', '.join(known)}"
            )
    found = questions.chosen(content, only, quick)
    if quick and not found:
        raise ConfigError(f"{path} marks no question as quick, and there is no {path.stem}-quick.yaml beside it")
    return found


def _question_cell(content: dict[str, Any], row: questions.Row, seed: int, lr: float, tuned: bool) -> Cell:
    name, density = _named(content, row.size, row.method, row.density)
    made = _cell(
        content, f"{name} lr{lr:g} s{seed}", "run", row.method, density, row.size, seed, lr,
        content["methods"][row.method], dict(content.get("probe") or {}),
    )  # fmt: skip
    return dataclasses.replace(made, tuned=tuned)


def _named(content: dict[str, Any], size: str, method: str, density: float) -> tuple[str, float]:
    """The beginning of a cell's name, and its density: a dense model has but one."""
    density = 1.0 if content["methods"][method].get("method") == "dense" else density
    return (f"{size} {method}" if density == 1.0 else f"{size} d{density:g} {method}"), density


def _peer_problems(keys: dict[str, Any], content: dict[str, Any]) -> list[str]:
    if "peer" not in keys:
        return []
    found = peers.problems(keys["peer"], keys.get("method"))
    if content.get("engine") != "torch":
        found.append("a peer trains in plain torch, expected the section engine: torch")
    return found


def _dense_problems(keys: dict[str, Any], content: dict[str, Any]) -> list[str]:
    if "then_dense" not in keys:
        return []
    share, found = keys["then_dense"], []
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < 1:
        found.append(f"then_dense is {shown(share)}, expected a share of the run between 0 and 1, such as 0.8")
    if keys.get("method") == "dense":
        found.append("method is 'dense' with then_dense, expected a sparse one")
    if content.get("engine") != "torch":
        found.append("then_dense is of plain torch, expected the section engine: torch")
    return found


def slug(name: str) -> str:
    """A name as a folder: ``SMET, e = 1`` becomes ``smet-e-1``."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _group(group: dict[str, Any], content: dict[str, Any], problems: list[str]) -> Iterable[Cell]:
    """The cells of one group: ordinary runs of ``methods``, or branch experiments from ``bases``."""
    return _branch_cells(group, content, problems) if "bases" in group else _run_cells(group, content, problems)


def _run_cells(group: dict[str, Any], content: dict[str, Any], problems: list[str]) -> Iterable[Cell]:
    for size, method, density, seed, lr in _product(group, "methods", content, problems):
        name, density = _named(content, size, method, density)
        name += f" s{seed}" if lr is None else f" lr{lr:g} s{seed}"
        measure = dict(content.get("probe") or {})
        yield _cell(content, name, "run", method, density, size, seed, lr, content["methods"][method], measure)


def _branch_cells(group: dict[str, Any], content: dict[str, Any], problems: list[str]) -> Iterable[Cell]:
    branches = content.get("branches") or {}
    variants = branches.get("variants") or {}
    lookup = {
        **content,
        "methods": branches.get("bases") or {},
        "run": merge(content["run"], branches.get("run") or {}),
    }
    chosen = {name: variants.get(name) for name in group.get("variants") or variants}
    problems += _variant_problems(chosen, variants)
    measure = {key: group.get(key, branches.get(key)) for key in ("samples", "at", "evaluate")}
    problems += [f"branches.{key} is missing" for key, value in measure.items() if value is None]
    for size, base, density, seed, lr in _product(group, "bases", lookup, problems):
        name = f"branches {size} d{density:g} {base}" + ("" if lr is None else f" lr{lr:g}") + f" s{seed}"
        sparsity = lookup["methods"][base]
        yield _cell(lookup, name, "branches", base, density, size, seed, lr, sparsity, {**measure, "variants": chosen})


def _variant_problems(chosen: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Variants that are not defined, or have nothing to be compared with."""
    found = [
        f"branches: variant '{name}' is not defined, expected one of {', '.join(known)}"
        for name in chosen
        if name not in known
    ]
    for name, variant in chosen.items():
        if variant and variant.get("update", True) and variant.get("reference") not in chosen:
            found.append(
                f"branches: variant '{name}' has reference {variant.get('reference')!r}, expected the name of a chosen "
                "variant with update: false"
            )
    return found


def _product(
    group: dict[str, Any], kind: str, content: dict[str, Any], problems: list[str]
) -> Iterable[tuple[str, str, float, int, float | None]]:
    """Every combination of one group of cells; those that name what does not exist become problems."""
    sizes, names = group.get("sizes") or [], group.get(kind) or []
    for name, known in [*((s, content["sizes"]) for s in sizes), *((n, content.get("methods") or {}) for n in names)]:
        if name not in known:
            problems.append(f"cells: '{name}' is not defined, expected one of {', '.join(known)}")
    yield from itertools.product(
        [size for size in sizes if size in content["sizes"]],
        [name for name in names if name in (content.get("methods") or {})],
        [float(density) for density in group.get("densities") or [1.0]],
        [int(seed) for seed in group.get("seeds") or [0]],
        [None if lr is None else float(lr) for lr in group.get("lr") or [None]],
    )


def _cell(
    content: dict[str, Any], name: str, kind: str, method: str, density: float, size: str, seed: int,
    lr: float | None, sparsity: dict[str, Any], measure: dict[str, Any],
) -> Cell:  # fmt: skip
    own = {key: value for key, value in content["sizes"][size].items() if key not in ("base", "run", "tuned_at")}
    settings = merge(content["sizes"][size].get("run") or {}, copy.deepcopy(content["run"]))
    settings = merge(settings, own)
    sparsity = dict(sparsity)
    sparsity.pop("tuned_as", None)
    own_ways = {key: sparsity.pop(key) for key in PLAIN if sparsity.get(key) is not None}
    settings = merge(settings, sparsity.pop("run", None) or {})
    settings = merge(settings, {"sparsity": {**sparsity, "density": density, "seed": seed}})
    settings = merge(settings, {"train": {"seed": seed}, "data": {"seed": seed}})
    if lr is not None:
        settings = merge(settings, {"optimizer": {"lr": lr}})
    settings = merge(settings, FORCED)
    lr = float(settings.get("optimizer", {}).get("lr", 0.0))
    plain = own_ways if content.get("engine") == "torch" else None
    return Cell(slug(name), kind, method, density, size, seed, lr, settings, measure, plain)
