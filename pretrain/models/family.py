"""What a model family is made of: a folder with ``config``, ``inventory``, ``model`` and ``hf``.

``config`` and ``inventory`` need no torch, so that a run file can be checked and a cluster planned without it;
``model`` and ``hf`` are imported when a model is built, or files of others are read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pretrain.models.answers import answer, part
from pretrain.models.inventory import Block, Inventory, Place, Shape, Weight

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretrain.models.parts import Parts


@dataclass(kw_only=True)
class FamilyConfig:
    """What every family's ``model`` section has."""

    family: str
    """A built-in family, or ``package.module:FAMILY`` of one's own."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each, under its name in a run file (``model.layers``)."""
        raise NotImplementedError

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Keys of its own: which there are, only its family knows."""


class ModelModule(Protocol):
    """What a family's ``model.py`` offers. It reads as mathematics and knows nothing of ranks."""

    Model: Callable[..., nn.Module]
    """(config, parts, activation_checkpointing=..., eos_id=...) to the whole model in one process, with
    ``loss(tokens)``: samples (b, s + 1) to their mean cross-entropy; called with token ids (b, s), it gives logits
    (b, s, v), and may take a ``cache`` beside them (``pretrain.models.cache``). A tied head goes by the embedding's
    name."""

    def blocks(self, config: Any, parts: Parts, recompute: bool) -> list[tuple[str, Callable[[], nn.Module]]]:
        """Name and maker of every block, in order. Each maps one tensor to one; a decoder layer takes a bias on the
        attention's scores too, or None for plain causal attention."""


class Droppable(Protocol):
    """What may be left out of a model from elsewhere."""

    def takes(self, name: str) -> bool:
        """Whether ``name`` may be left out; then it is noted."""


class HfModule(Protocol):
    """What a family's ``hf.py`` offers: its files as others read and write them."""

    def to_config(self, model: Any, dtype: str, tokens: Mapping[str, int | None]) -> dict[str, Any]:
        """The content of ``config.json``."""

    def from_config(self, path: Path, raw: dict[str, Any], dropping: Droppable) -> dict[str, Any]:
        """The keys of the ``model`` section that the ``config.json`` at ``path`` means. Raises ``ConfigError``."""

    def file_name(self, name: str) -> str:
        """What the files call the weight ``name``."""

    def says_nothing_new(self, name: str, model: Any, tensor: Callable[[str], Tensor]) -> bool:
        """Whether the tensor that the files call ``name``, which is no weight, follows from the others."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family; what a folder's ``__init__`` calls ``FAMILY``."""

    package: str
    """The folder's module name, ``__name__``."""
    title: str
    """For messages: ``LLaMA``."""
    config: type[FamilyConfig]
    """Keys of the ``model`` section."""
    shape: Callable[[Any], Shape]
    weights: Callable[[Any], Iterable[Weight]]
    """Every weight, in the order in which the model computes."""
    saved: Callable[[Any, Block, Place], float]
    """Bytes per token that autograd keeps of a decoder layer, or of the final norm."""
    function: tuple[str, ...] = ()
    """Keys that change what the model computes, but the shape of no weight."""

    def __post_init__(self) -> None:
        if not (isinstance(self.config, type) and issubclass(self.config, FamilyConfig) and is_dataclass(self.config)):
            raise TypeError(f"config of a Family is {self.config!r}, expected a dataclass that is a FamilyConfig")
        for name in ("shape", "weights", "saved"):
            if not callable(value := getattr(self, name)):
                raise TypeError(f"{name} of a Family is {value!r}, expected a function")
        if isinstance(self.function, str):
            raise TypeError(f"function of a Family is '{self.function}', expected a tuple of keys")

    @property
    def model(self) -> ModelModule:
        """The family's ``model.py``. Raises ``ConfigError``, as ``hf``."""
        return cast(ModelModule, part(self.package, "model", ("Model", "blocks")))

    @property
    def hf(self) -> HfModule:
        """The family's ``hf.py``."""
        return cast(HfModule, part(self.package, "hf", ("to_config", "from_config", "file_name", "says_nothing_new")))

    def inventory(self, model: FamilyConfig) -> Inventory:
        """The weights and sizes of the model that the section ``model`` describes.

        Raises:
            ConfigError: its own code fails.
        """
        shape = answer(f"model.family '{model.family}': shape()", lambda: self.shape(model))
        return Inventory(model, shape, self.weights, self.saved)
