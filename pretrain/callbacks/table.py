"""Every callback of a run: the built-in ones by name, those of the run file, and all of them in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pretrain.callbacks.base import ORDER, OWN, Callback
from pretrain.callbacks.checkpointing import CheckpointCallback
from pretrain.callbacks.consistency import ConsistencyCallback
from pretrain.callbacks.evaluation import EvaluationCallback
from pretrain.callbacks.guard import GuardCallback, Reload
from pretrain.callbacks.logging import MetricsCallback, ProgressCallback
from pretrain.callbacks.memory import MemoryCallback
from pretrain.callbacks.samples import SamplesCallback
from pretrain.callbacks.sources import SourcesCallback
from pretrain.callbacks.speed import SpeedCallback
from pretrain.callbacks.stability import StabilityCallback
from pretrain.callbacks.topology import TopologyCallback
from pretrain.callbacks.traffic import TrafficCallback
from pretrain.callbacks.writers import WritersCallback
from pretrain.checkpoint.save import Saver
from pretrain.config import RunConfig
from pretrain.config.schema import CallbackConfig
from pretrain.data.loader import BatchLoader
from pretrain.errors import ConfigError
from pretrain.layout import Layout
from pretrain.run_folder import RunFolder
from smet import named, wanted
from smet.errors import require_all


@dataclass(frozen=True)
class Parts:
    """What built-in callbacks are made of."""

    config: RunConfig
    layout: Layout
    folder: RunFolder
    saver: Saver
    reload: Reload
    validation: BatchLoader | None


def _traffic(parts: Parts) -> Callback | None:
    return TrafficCallback() if parts.config.logging.traffic and parts.layout.world_size > 1 else None


def _evaluation(parts: Parts) -> Callback | None:
    return EvaluationCallback(parts.validation) if parts.validation is not None else None


def _samples(parts: Parts) -> Callback | None:
    return SamplesCallback(parts.folder) if parts.config.evaluation.prompts else None


BUILT_IN: dict[str, Callable[[Parts], Callback | None]] = {
    "traffic": _traffic,
    "guard": lambda parts: GuardCallback(parts.config.guard, parts.folder, parts.saver, parts.reload),
    "evaluation": _evaluation,
    "samples": _samples,
    "topology": lambda parts: TopologyCallback(parts.folder),
    "stability": lambda parts: StabilityCallback(parts.folder),
    "consistency": lambda _: ConsistencyCallback(),
    "memory": lambda parts: MemoryCallback(parts.folder),
    "sources": lambda _: SourcesCallback(),
    "checkpoint": lambda parts: CheckpointCallback(parts.saver),
    "speed": lambda parts: SpeedCallback(parts.config),
    "metrics": lambda parts: MetricsCallback(parts.folder),
    "writers": lambda parts: WritersCallback(parts.config, parts.folder),
    "progress": lambda _: ProgressCallback(),
}
"""By the names of ``ORDER``; None where the settings ask for none."""


def callbacks_of(parts: Parts) -> list[Callback]:
    """All callbacks of a run, in the order in which they are called.

    Raises:
        ConfigError: see ``own_callbacks``.
    """
    made: list[Callback] = []
    for name in ORDER:
        if name == OWN:
            made += own_callbacks(parts.config)
        elif (one := BUILT_IN[name](parts)) is not None:
            made.append(one)
    return made


def classes_of(config: RunConfig) -> list[type[Callback]]:
    """The classes that the run file names under ``callbacks``. Imports their modules, makes none of them.

    Raises:
        ConfigError: one is not there, is no ``Callback``, or does not take its options; all that are not are named.
    """
    found: list[type[Callback]] = []

    def look_up(where: str, spec: CallbackConfig) -> None:
        kind: type[Callback] = named.find(f"{where}.name", spec.name, {}, wanted.derived_from(Callback))
        wanted.require_methods(f"{where}.name", spec.name, kind, Callback)
        wanted.require_fit(where, spec.name, kind, **spec.options)
        found.append(kind)

    require_all(partial(look_up, f"callbacks[{position}]", spec) for position, spec in enumerate(config.callbacks))
    return found


def own_callbacks(config: RunConfig) -> list[Callback]:
    """The callbacks that the run file names, made with their options.

    Raises:
        ConfigError: see ``classes_of``; or two callbacks of one name, under which checkpoints keep their state.
    """
    made = []
    for kind, spec in zip(classes_of(config), config.callbacks, strict=True):
        one = kind(**spec.options)
        if one.name == Callback.name:
            one.name = spec.name
        made.append(one)
    counts = Counter([*BUILT_IN, *(one.name for one in made)])
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(
            f"callbacks: {len(twice)} names are there twice ({', '.join(twice)}), expected one each: checkpoints keep"
            " states by them; set self.name in the callback's __init__"
        )
    return made
