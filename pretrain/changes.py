"""Settings that a run had and those it goes on with: which may differ, and what the change does.

What is trained may not change within a run folder. Where data lies may: its content is compared, by fingerprint
(``pretrain.checkpoint.resume``). A branch in a folder of its own may change anything that fits the weights. Whatever
may change, and bends the run, is said once, old and new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.command import again, override
from pretrain.config import RunConfig
from pretrain.config.load import config_from_dict
from pretrain.config.passed_on import still_known
from pretrain.errors import ConfigError
from pretrain.schedule import learning_rate
from smet.config import CHOICES, TILES_PRUNE_START, SmetConfig
from smet.named import is_own
from smet.schedule import TopologySchedule

DATA = ("data.train", "data.curriculum", "data.validation")
"""Corpora, known by their content."""
MAY_CHANGE = {
    "train.steps", "train.micro_batch_size", "train.activation_checkpointing", "train.output_dir", "train.device",
    "train.stop_at", "train.consistency_interval", "sparsity.mask_residency", "sparsity.weight_residency",
    "sparsity.compute", "data.tokenizer", *DATA,
}  # fmt: skip
"""Settings that a resumed run may change: they do not change what is being trained."""
MAY_CHANGE_SECTIONS = (
    "parallel",
    "evaluation",
    "checkpoint",
    "logging",
    "guard",
    "operation",
    "callbacks",
    "deepspeed",
)
QUIET = (
    "train.output_dir", "train.stop_at", "train.device", "data.tokenizer", "checkpoint", "logging", "operation",
    "evaluation.prompts", "evaluation.prompts_interval", "evaluation.prompts_tokens", "evaluation.prompts_temperature",
)  # fmt: skip
"""Settings and sections that bend nothing."""


SHAPES = tuple(
    f"sparsity.{name}"
    for name in ("method", "density", "initial_density", "block", "permute", "distribution", "include", "exclude")
)
"""Settings that decide which weights there are."""
ORDERS = ("sparsity.seed", "sparsity.topology_ranges")
"""Settings that permuted features follow from."""


BEFORE_BALANCE = "never"
"""``sparsity.balance`` of settings that lack it: they are of a version that knew none."""


@dataclass(frozen=True)
class Change:
    """One setting, by its dotted name."""

    key: str
    old: Any
    new: Any
    permuted: bool = False
    """Whether either side permutes features."""

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.old)} -> {_short(self.new)}"

    @property
    def allowed(self) -> bool:
        """Whether a run may go on with it in its own folder."""
        return self.key in MAY_CHANGE or _in(self.key, MAY_CHANGE_SECTIONS)

    @property
    def bends(self) -> bool:
        """Whether the run may come out otherwise for it."""
        return not _in(self.key, QUIET)

    @property
    def fits(self) -> bool:
        """Whether a branch may have it: neither the weights nor the order of the data depend on it."""
        if self.key == "optimizer.name":  # whose state is in the checkpoint
            return False
        if self.permuted and self.key in ORDERS:
            return False
        return self.key.startswith(("optimizer.", "train.")) or (
            self.key.startswith("sparsity.") and self.key not in SHAPES
        )

    @property
    def back(self) -> str:
        """The override that undoes it."""
        return override(self.key, self.old)


def _in(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _short(value: Any) -> str:
    blend = isinstance(value, list) and value and all(isinstance(item, dict) and "path" in item for item in value)
    text = ", ".join(str(item["path"]) for item in value) if blend else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Every setting that differs between two runs' plain settings."""
    permuted = any((side.get("sparsity") or {}).get("permute", "none") != "none" for side in (old, new))
    return [replace(change, permuted=permuted) for change in _changes(old, new, "")]


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str) -> list[Change]:
    found = []
    for key in sorted({*old, *new}, key=str):
        was, is_now = old.get(key), new.get(key)
        if was == is_now:
            continue
        if isinstance(was, dict) and isinstance(is_now, dict):
            found += _changes(was, is_now, f"{prefix}{key}.")
        else:
            found.append(Change(f"{prefix}{key}", was, is_now))
    return found


def completed(settings: dict[str, Any], family: str) -> dict[str, Any]:
    """Settings of an earlier version with the defaults of keys that are new since, which say what it did.

    Args:
        family: model family of the run that asks, the only one of its own that may be imported.
    """
    config = known(settings, family)
    return settings if config is None else config.to_dict()


def settle(config: RunConfig, saved: dict[str, Any]) -> None:
    """Let what the run file leaves to the program be as it was when the run began: its masks are those of then.

    Args:
        saved: settings of the run folder or checkpoint that is gone on from; empty where there is none.
    """
    own, before = config.sparsity, saved.get("sparsity")
    if own.balance != "auto" or not isinstance(before, dict):
        return
    balance = before.get("balance", BEFORE_BALANCE)
    if balance == "auto" or balance not in CHOICES["balance"]:
        return
    if own.is_balanced(own.block) and own.prune_start == TILES_PRUNE_START:
        start = before.get("prune_start")
        own.prune_start = start if isinstance(start, float) else own.prune_start
    own.balance = balance


def known(settings: dict[str, Any], family: str) -> RunConfig | None:
    """Saved settings as this version understands them, or None; ``family``: that of the run that asks."""
    sparsity = settings.get("sparsity")
    if isinstance(sparsity, dict):
        settings = {**settings, "sparsity": {"balance": BEFORE_BALANCE, **sparsity}}
    deepspeed = settings.get("deepspeed")
    if isinstance(deepspeed, dict):
        settings = {**settings, "deepspeed": still_known(deepspeed)}
    try:
        return config_from_dict(settings, (family,))
    except ConfigError:
        return None


@dataclass(frozen=True)
class Bend:
    """What a run that goes on after ``step`` does otherwise than it would have done."""

    changed: list[Change]
    rate: tuple[float, float]
    """Learning rate of the next step by the old settings, and by the new."""
    fraction: tuple[float, float]
    """The same of the prune fraction of the next topology update that the new settings have; 0 = no update."""
    density: tuple[float, float] | None = None
    """The same of the density after that update, where it falls; NaN = unknown."""

    def event(self) -> dict[str, Any]:
        """For ``events.jsonl``."""
        return {
            "changed": {change.key: [change.old, change.new] for change in self.changed},
            "learning_rate": list(self.rate),
            "prune_fraction": [None if math.isnan(part) else part for part in self.fraction],
            **({} if self.density is None else {"density": [None if math.isnan(d) else d for d in self.density]}),
        }

    def lines(self, checkpoint: Path) -> list[str]:
        """For the screen: what changed since ``checkpoint``, what that does, and what else could be done."""
        found = [f"changed since {checkpoint.name}: {'; '.join(str(change) for change in self.changed)}"]
        (old_rate, new_rate), (old_part, new_part) = self.rate, self.fraction
        if not _close(old_rate, new_rate):
            found.append(f"  learning rate of the next step: {old_rate:.2e} -> {new_rate:.2e}")
        if not _close(old_part, new_part):
            old = "unknown" if math.isnan(old_part) else f"{old_part:.3g}"
            found.append(f"  prune fraction of the next topology update: {old} -> {new_part:.3g} (0 = none)")
        if self.density is not None and not _close(*self.density):
            old, new = ("unknown" if math.isnan(density) else f"{density:.3g}" for density in self.density)
            more = ": closed tiles are grown again" if self.density[1] > self.density[0] else ""
            found.append(f"  density after the next topology update: {old} -> {new}{more}")
        if any(change.key == "train.steps" for change in self.changed) and new_rate > 1.01 * old_rate:
            found.append(
                "  the schedule is laid out over train.steps, so more of them raise the rate again. To go on without "
                "the jump, branch at the old rate: "
                + again(
                    f"checkpoint.resume={checkpoint}", "train.output_dir=NEW", "optimizer.schedule=constant",
                    f"optimizer.lr={old_rate:.4g}", *(_same_updates(old_part) if self.density is None else ()),
                )
                + "; or from an earlier checkpoint. Under optimizer.schedule=constant, or wsd until its decay, more "
                "steps change nothing."
            )  # fmt: skip
        return found


def _same_updates(fraction: float) -> tuple[str, ...]:
    if fraction == 0.0:
        return ("sparsity.update_interval=0",)
    if math.isnan(fraction):
        return ()
    return "sparsity.prune_schedule=constant", f"sparsity.prune_start={fraction:.3g}"


def bend(saved: dict[str, Any], config: RunConfig, step: int) -> Bend | None:
    """What ``config`` changes for a run saved after ``step`` with the settings ``saved``; None: nothing."""
    found = [change for change in changes(completed(saved, config.model.family), config.to_dict()) if change.bends]
    if not found:
        return None
    old = known(saved, config.model.family) or config
    follows = TopologySchedule(config.sparsity, config.train.steps).next_due(step) is not None  # else the run tells
    densities = _densities(old, config, step) if config.sparsity.falls and follows else None
    return Bend(found, (_rate(old, step), _rate(config, step)), _fractions(old, config, step), densities)


def _rate(config: RunConfig, step: int) -> float:
    return learning_rate(step, config.optimizer, config.train.steps)


def _fractions(old: RunConfig, new: RunConfig, step: int) -> tuple[float, float]:
    now = TopologySchedule(new.sparsity, new.train.steps)
    before = TopologySchedule(old.sparsity, old.train.steps)
    interval = new.sparsity.update_interval or old.sparsity.update_interval
    if not interval:
        return 0.0, 0.0
    following = (step // interval + 1) * interval
    return _fraction(before, following, now.config), _fraction(now, following, now.config)


def _densities(old: RunConfig, new: RunConfig, step: int) -> tuple[float, float]:
    interval, trusted = new.sparsity.update_interval, new.sparsity.density_schedule
    following, found = (step // interval + 1) * interval, list[float]()
    for config in (old, new):
        name = config.sparsity.density_schedule
        unknown = is_own(name) and name != trusted
        schedule = TopologySchedule(config.sparsity, config.train.steps)
        found.append(math.nan if unknown else schedule.density(following))
    return found[0], found[1]


def _fraction(schedule: TopologySchedule, step: int, trusted: SmetConfig) -> float:
    """The prune fraction after ``step``; NaN where only a module that a checkpoint names would know it."""
    if not schedule.config.dynamic or step > schedule.last_step:
        return 0.0
    name = schedule.config.prune_schedule
    if is_own(name) and name != trusted.prune_schedule:
        return math.nan
    return schedule.prune_fraction(step)


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
