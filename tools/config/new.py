"""``smet config new``: a run file for a model size, a corpus and some GPUs, with the fastest layout that fits."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig, config_from_dict
from pretrain.config.load import from_overrides, layers_of, merge, names_given
from pretrain.config.yaml_text import read_yaml, to_yaml
from pretrain.data.corpus import VOCAB_PADDING
from pretrain.data.indexed import named_by_file, tokens_path
from pretrain.data.manifest import read_manifest
from pretrain.errors import ConfigError, nearest
from pretrain.numbers import duration, short_count
from pretrain.plan.table import human

from ..packages import CONFIGS, ROOT
from ..planner.budget import Budget, weights_of
from ..planner.host import waiting
from ..planner.machines import Named
from ..planner.search import Found, fastest, held, search, share_evenly
from ..planner.which import TOKENS_PER_WEIGHT, layout, model_sizes

EPOCHS = 4
"""Passes over a corpus beyond which another one teaches little (Muennighoff et al. 2023, arXiv 2305.16264)."""
BETWEEN_SAVES = 1800
"""Seconds, about."""
VOCABULARY_STEP = 64
"""Rows of embeddings come in multiples of it, so that tensor-parallel ranks and tiles divide them."""


@dataclass(kw_only=True)
class Wanted:
    """What the new run is to be."""

    size: str
    data: str
    validation: str | None = None
    tokenizer: str | None = None
    gpus: int = 1
    named: Named
    memory: int
    tokens: float | None = None
    hours: float | None = None
    """One of both; neither: 20 tokens per weight."""
    tiles: bool = False
    preset: str = "measured"
    """A file of ``configs/presets``."""
    overrides: Sequence[str] = ()


@dataclass
class New:
    """A run file that is not written yet."""

    content: dict[str, Any]
    config: RunConfig
    best: Found
    budget: Budget
    remarks: list[str] = field(default_factory=list)


def plan(wanted: Wanted) -> New:
    """The settings, from those of ``configs/`` for the size, with a plan that fits.

    Raises:
        ConfigError: no such size or preset, settings that do not fit each other, or no layout that fits the GPUs.
    """
    for option, given, known in (("model", wanted.size, model_sizes()), ("preset", wanted.preset, presets())):
        if given not in known:
            raise ConfigError(f"--{option} is '{given}', expected one of {', '.join(known)}{nearest(given, known)}")
    _, content = layers_of(CONFIGS / ("tiles" if wanted.tiles else "") / f"{wanted.size}.yaml")
    content = merge(content, read_yaml(CONFIGS / "presets" / f"{wanted.preset}.yaml"))
    remarks: list[str] = []
    said = _given(wanted)
    _set_data(content, wanted, remarks, said)
    content["train"]["output_dir"] = f"runs/{Path(wanted.data).name}-{wanted.size}"
    if wanted.named.is_cpu:
        content["train"]["device"] = "cpu"
    content = merge(content, from_overrides(wanted.overrides))
    _shorten_warmup(content, said)
    config = _shared(content, config_from_dict(content), wanted.gpus, remarks)
    own = held(config, wanted.overrides)
    found = search(config, wanted.gpus, wanted.memory, wanted.named.machine, thorough=False, held=own)
    best = fastest(config, wanted.gpus, found)
    for name, value in best.settings.items():
        _put(content, name, value)
    _set_length(content, config, wanted, best.time.total, said)
    made = config_from_dict(content)
    budget = Budget.of(made, wanted.gpus, best.time.total, None)
    waits = waiting(made, wanted.gpus, best.time.total)
    return New(
        content, made, best, budget, [*remarks, *_epochs(wanted.data, budget, said), *([waits] if waits else [])]
    )


def presets() -> list[str]:
    """Names in configs/presets."""
    return sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml"))


def _set_data(content: dict[str, Any], wanted: Wanted, remarks: list[str], given: Collection[str]) -> None:
    if why := named_by_file(wanted.data):
        raise ConfigError(f"--data is {wanted.data}, expected the prefix of a corpus, {why}")
    data = content["data"]
    data |= {"train": wanted.data, "validation": wanted.validation, "tokenizer": wanted.tokenizer}
    for key in ("validation", "tokenizer"):
        if data[key] is None:
            del data[key]
    if wanted.validation is None and "data.validation" not in given:
        content.pop("evaluation", None)
        remarks.append("no validation corpus is given: the run will not be evaluated")
    manifest = read_manifest(wanted.data)
    if manifest is None:
        lacks = "has no manifest" if tokens_path(wanted.data).is_file() else "is not there yet"
        remarks.append(f"{wanted.data} {lacks}: its vocabulary and length are not checked")
        return
    rows, least = content["model"]["vocab_size"], manifest.vocab_size
    if not least <= rows < least + VOCAB_PADDING:
        content["model"]["vocab_size"] = -(-least // VOCABULARY_STEP) * VOCABULARY_STEP
        remarks.append(f"model.vocab_size is {content['model']['vocab_size']}, as the corpus needs, instead of {rows}")


def _shared(content: dict[str, Any], config: RunConfig, gpus: int, remarks: list[str]) -> RunConfig:
    """With a global batch that the GPUs can share."""
    shared = share_evenly(config, gpus)
    batch = shared.train.global_batch_size
    if batch != config.train.global_batch_size:
        remarks.append(f"train.global_batch_size is {batch}, which {gpus} GPUs can share, instead of"
                       f" {config.train.global_batch_size}")  # fmt: skip
        content["train"]["global_batch_size"] = batch
    return shared


def _given(wanted: Wanted) -> set[str]:
    """Dotted names of what overrides say, which nothing here may say otherwise.

    Raises:
        ConfigError: the length of the run is said twice.
    """
    given = names_given(wanted.overrides)
    if "train.steps" in given and (wanted.tokens or wanted.hours):
        option = "--tokens" if wanted.tokens else "--hours"
        raise ConfigError(f"{option} and train.steps both say how long the run is, expected one of them")
    return given


def _shorten_warmup(content: dict[str, Any], given: Collection[str]) -> None:
    """Where steps are given and the warm-up is not: that of the size's own file may be longer than the run."""
    train, optimizer = content["train"], content["optimizer"]
    if "train.steps" not in given or not isinstance(optimizer, dict):
        return
    steps, warmup = train["steps"], optimizer.get("warmup_steps")
    if isinstance(steps, int) and isinstance(warmup, int) and "optimizer.warmup_steps" not in given:
        optimizer["warmup_steps"] = min(warmup, steps // 10)


def _set_length(
    content: dict[str, Any], config: RunConfig, wanted: Wanted, seconds: float, given: Collection[str]
) -> None:
    """Steps, and what is laid out over them, unless ``given``: warm-up, evaluations, saves."""
    per_step = config.train.global_batch_size * config.data.seq_length
    tokens = wanted.tokens or TOKENS_PER_WEIGHT * weights_of(config)[0]
    steps = max(1, int(wanted.hours * 3600 / seconds) if wanted.hours else -(-int(tokens) // per_step))
    if "train.steps" in given:
        steps = config.train.steps
    tenth = max(1, steps // 10)
    laid_out = {
        "train.steps": steps,
        "optimizer.warmup_steps": min(config.optimizer.warmup_steps, steps // 10),
        **({"evaluation.interval": tenth} if content.get("evaluation") else {}),
        "checkpoint.interval": max(1, min(round(BETWEEN_SAVES / seconds), tenth)),
    }
    for name, value in laid_out.items():
        if name not in given:
            _put(content, name, value)
    if "checkpoint.keep_every" not in given:
        content["checkpoint"].pop("keep_every", None)


def _put(content: dict[str, Any], name: str, value: Any) -> None:
    """Set the key with the dotted ``name``, in a section that may be null."""
    section, _, key = name.partition(".")
    content[section] = {**(content.get(section) or {}), key: value}


def _epochs(prefix: str, budget: Budget, given: Collection[str]) -> list[str]:
    manifest = read_manifest(prefix)
    others = {"data.train", "data.curriculum"} & {*given}  # of a blend that is given the run itself will tell
    if manifest is None or not manifest.tokens or others:
        return []
    epochs = budget.tokens / manifest.tokens
    told = f"the corpus has {short_count(manifest.tokens)} tokens: {epochs:.3g} epochs"
    return [told if epochs <= EPOCHS else f"warning: {told}, of which those beyond {EPOCHS} teach little"]


def text(new: New, wanted: Wanted, path: Path) -> str:
    """The file's content."""
    head = [
        schema_line(path),
        f"# LLaMA {wanted.size} on {wanted.data}: {short_count(new.budget.tokens)} tokens, "
        f"{new.budget.tokens / new.budget.weights:.3g} per weight.",
        f"# {summary(new, wanted)}",
        *(f"# {remark}" for remark in new.remarks),
    ]
    sections = [to_yaml({name: section}) for name, section in new.content.items() if section]
    return "\n".join(["\n".join(head) + "\n", *sections])


def summary(new: New, wanted: Wanted) -> str:
    """The plan in a sentence."""
    kind = "processes on CPU" if wanted.named.is_cpu else "GPUs"
    seconds = new.budget.hours * 3600
    return (
        f"Planned for {wanted.gpus} {kind}: {layout(new.best)}; peak {human(new.best.peak)} of {human(wanted.memory)}, "
        f"{new.best.time.total:.3g} s per step, {duration(seconds)} for {new.budget.steps:,} steps. "
        "Predicted, not measured."
    )


def schema_line(path: Path) -> str:
    """What editors look for: where the schema lies, seen from the file ``path``."""
    schema, place = CONFIGS / "schema.json", path.resolve().parent
    near = place.is_relative_to(ROOT) and (ROOT / "pyproject.toml").is_file()
    return f"# yaml-language-server: $schema={os.path.relpath(schema, place) if near else schema}"


def write(new: New, wanted: Wanted, path: Path) -> None:
    """Make the file; never in the place of another.

    Raises:
        ConfigError: there is something already.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text(new, wanted, path))
    except FileExistsError:
        raise ConfigError(f"{path} is there already, expected the name of a new file") from None


def count(words: str) -> float:
    """``10B``, ``500M`` or ``1e9`` as a number.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kMBGT]?)\s*", words, re.I)
    scale = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
    try:
        number = float(found[1]) * scale[found[2].lower()] if found else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < 1e18:
        raise ConfigError(f"'{words}' is no number of tokens, expected one such as 10B or 500M")
    return number
