"""Checks that need more than one section of a run file.

Each check is a function of the sections it names as parameters. ``cross_problems`` calls those whose
sections are all at hand, so that a section with a mistyped key hides no problem of the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pretrain.config.layouts import LAYOUT_CHECKS
from pretrain.config.passed_on import PASSED_ON_CHECKS
from pretrain.models import FAMILIES, inventory_of
from pretrain.models.soundness import contradictions

if TYPE_CHECKING:
    from pretrain.config.optimizer import OptimizerConfig
    from pretrain.config.schema import DataConfig, EvaluationConfig, TrainConfig
    from pretrain.models.family import FamilyConfig


def cross_problems(sections: dict[str, Any], world: int | None = None) -> list[str]:
    """Every way in which the given sections (name -> dataclass) do not fit each other.

    Args:
        world: number of ranks, where it is known; then layouts that would work are named.
    """
    found = []
    sections = {**sections, "world": world}
    if "model" in sections and sections["model"].family not in FAMILIES:  # tests look at those
        tensor = sections["parallel"].tensor if "parallel" in sections else 1
        if (wrong := _unsound_family(sections["model"], tensor)) is not None:
            found += wrong
            del sections["model"]  # of which nothing can be asked
    for check in _CHECKS:
        names = list(inspect.signature(check).parameters)
        if all(name in sections for name in names):
            found += check(**{name: sections[name] for name in names})
    return found


def _unsound_family(model: FamilyConfig, tensor: int) -> list[str] | None:
    """What contradicts itself in the family's own code; None where it can be asked. Values that are refused anyway
    may break it: then there is nothing to add."""
    found = contradictions(model, tensor)
    return None if not found else [] if model.problems() else found


def _sequence_fits(model: FamilyConfig, data: DataConfig) -> list[str]:
    shape = inventory_of(model).shape
    if data.seq_length <= shape.longest:
        return []
    return [
        f"data.seq_length is {data.seq_length}, expected at most model.{shape.keys['longest']}"
        f" {shape.longest}; lower the one or raise the other"
    ]


def _eos_id_is_a_token(model: FamilyConfig, data: DataConfig) -> list[str]:
    shape = inventory_of(model).shape
    if data.eos_id is None or data.eos_id < shape.vocabulary:
        return []
    return [
        f"data.eos_id is {data.eos_id}, expected a token id below model.{shape.keys['vocabulary']} {shape.vocabulary}"
    ]


def _warmup_fits(optimizer: OptimizerConfig, train: TrainConfig) -> list[str]:
    if optimizer.warmup_steps <= train.steps:
        return []
    return [
        f"optimizer.warmup_steps is {optimizer.warmup_steps}, expected at most train.steps {train.steps}:"
        " the learning rate would never reach its peak"
    ]


def _evaluation_has_data(data: DataConfig, evaluation: EvaluationConfig) -> list[str]:
    if evaluation.interval == 0 or data.validation:
        return []
    return [
        f"evaluation.interval is {evaluation.interval} without data.validation, expected a validation corpus,"
        " or interval 0"
    ]


def _prompts_have_a_tokenizer(data: DataConfig, evaluation: EvaluationConfig) -> list[str]:
    if data.tokenizer or not evaluation.prompts:
        return []
    return ["evaluation.prompts is given without data.tokenizer, expected a tokenizer for these texts, or prompts []"]


def _prompts_have_room(data: DataConfig, evaluation: EvaluationConfig) -> list[str]:
    if not evaluation.prompts or evaluation.prompts_tokens < data.seq_length:
        return []
    return [
        f"evaluation.prompts_tokens is {evaluation.prompts_tokens}, expected fewer than data.seq_length"
        f" {data.seq_length}, in which a prompt has to fit too"
    ]


_CHECKS: tuple[Callable[..., list[str]], ...] = (
    _sequence_fits,
    _eos_id_is_a_token,
    *LAYOUT_CHECKS,
    _warmup_fits,
    _evaluation_has_data,
    _prompts_have_a_tokenizer,
    _prompts_have_room,
    *PASSED_ON_CHECKS,
)
