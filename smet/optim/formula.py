"""What a formula is: the state that it declares, and one update on flat values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from smet import wanted
from smet.errors import ConfigError
from smet.optim.ages import AgeTable, Averages

KEPT = ("birth", "master")
"""State that ``AgedOptimizer`` keeps itself; no formula's may be called so."""
MATRICES = "matrices"
"""What a formula may require: parameters in their own shape, of two dimensions."""
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
"""What state may be of: what topology updates can move, and checkpoints store and read again."""
CHUNK = 1 << 20
"""Weights of one ``update`` at most, so that its temporaries stay small beside the state."""


@dataclass(frozen=True)
class State:
    """One vector beside the weights: an entry for each, 0 at the start and where a weight is regrown."""

    name: str
    """As checkpoints call it: a weight ``w`` has ``w/name``."""
    dtype: torch.dtype | None = None
    """One of ``DTYPES``; None = that of the master weights: fp32, or fp64 for fp64 weights."""

    @property
    def width(self) -> int:
        """Bytes per weight, where master weights are fp32."""
        return (self.dtype or torch.float32).itemsize


@dataclass(frozen=True)
class Values:
    """What one update works on: a parameter, a partition of several, or a part of either. All vectors are ``(n,)``."""

    weight: Tensor
    """Master weights, to be changed in place."""
    grad: Tensor
    """Gradient, in any floating dtype."""
    state: Mapping[str, Tensor]
    """What the formula declared, by name; to be changed in place."""
    birth: Tensor | None
    """Birth code of each weight, uint8; None where no weight is ever regrown."""
    lr: float
    """Learning rate of this step, the factor of the group's density included."""
    options: Mapping[str, Any]
    """The parameter group: ``weight_decay``, and what the formula has ``defaults`` for."""
    ages: AgeTable
    step: int
    """Number of this optimizer step, from 1."""
    shape: torch.Size
    """Of the parameter; of two dimensions where the formula requires matrices, and then all of it is here."""

    def part(self, here: slice) -> Values:
        """The same for some of the weights."""
        state = {name: vector[here] for name, vector in self.state.items()}
        birth = None if self.birth is None else self.birth[here]
        return replace(self, weight=self.weight[here], grad=self.grad[here], state=state, birth=birth)

    def parts(self, size: int) -> Iterator[Values]:
        """All of them, ``size`` weights at a time; this itself where it is no more."""
        count = self.weight.numel()
        if count <= size:
            yield self
            return
        for begin in range(0, count, size):
            yield self.part(slice(begin, begin + size))

    def by_age(self, factor: Callable[[float, float], float]) -> Tensor:
        """``factor(age, warmup)`` of each weight: ``(n,)``, or ``()`` where all are of one age; in the master dtype.

        ``age`` counts optimizer steps since a weight was regrown, 1 at its first update; with global bias correction
        it is the run's step. ``warmup`` is the fraction of its step that a weight of its age is to take.
        """
        rows = [(0.0 if clock is None else factor(*clock)) for clock in self.ages.clocks(self.step)]
        table = torch.tensor(rows, dtype=torch.float64).to(self.weight)
        return table[0] if self.birth is None else table.index_select(0, self.birth.int())


class Formula:
    """Base of all formulas: a class without a state of its own, of which one object serves all parameters.

    ``update`` gets vectors cut anywhere, of up to ``CHUNK`` weights, in which each weight must stand for itself.
    """

    name: ClassVar[str] = ""
    """In messages and saved states."""
    state: ClassVar[tuple[State, ...]] = ()
    """What it keeps beside each weight. Planner, checkpoints and topology updates follow from this."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Options of a parameter group beside ``lr`` and ``weight_decay``, and what they are unless told."""
    requires: ClassVar[tuple[str, ...]] = ()
    """``("matrices",)``: it has no meaning on flat values, and is refused where parameters are cut or compressed."""
    in_chunks: ClassVar[bool] = True
    """False where ``update`` sees to its temporaries itself, and wants each vector at once."""

    def problems(self, options: Mapping[str, Any]) -> list[str]:
        """What is wrong with a group's ``options``, each as ``NAME is FOUND, expected ...``."""
        return []

    def averages(self, options: Mapping[str, Any]) -> Averages:
        """``(decay, power)`` of each factor ``(1 - decay**age)**power`` by which ``update`` depends on a weight's age.

        Of weights that they hardly tell apart, ages are kept only roughly; see ``AgeTable``. Warm-up is not among them.
        """
        return ()

    def update(self, values: Values) -> None:
        """One optimizer step of ``values.weight`` and ``values.state``, in place."""
        raise NotImplementedError

    @classmethod
    def width(cls) -> int:
        """Bytes of state per weight."""
        return sum(state.width for state in cls.state)


def require_flat(formula: Formula) -> None:
    """Refuse a formula that has no meaning on the flat partitions of an engine.

    Raises:
        ConfigError: it requires matrices.
    """
    if MATRICES in formula.requires:
        raise ConfigError(
            f"{formula.name} requires matrices, and ZeRO and fully_shard cut parameters; choose a formula that works on"
            " flat values, such as adamw"
        )


def made_of(what: str, found: Any) -> Formula:
    """A formula, of a class or an object.

    Args:
        what: the setting, for messages.

    Raises:
        ConfigError: it is none, or declares what cannot be.
    """
    kind = found if isinstance(found, type) else type(found)
    if not issubclass(kind, Formula):
        raise ConfigError(
            f"{what} is {kind.__module__}.{kind.__qualname__}, expected a class derived from smet.optim.formula.Formula"
        )
    names = [state.name for state in kind.state]
    problems = []
    if not kind.name:
        problems.append("has no name")
    if kind.update is Formula.update:
        problems.append("computes nothing: it has no method update")
    problems += [f"calls a state '{name}', expected a name of its own, such as 'momentum'" for name in names
                 if not name.isidentifier() or name in KEPT or names.count(name) > 1]  # fmt: skip
    problems += [f"keeps its state '{state.name}' in {state.dtype}, expected one of {', '.join(map(str, DTYPES))}"
                 for state in kind.state if state.dtype not in (None, *DTYPES)]  # fmt: skip
    problems += [f"requires '{need}', expected {MATRICES}" for need in kind.requires if need != MATRICES]
    if problems:
        raise ConfigError([f"{what}: {kind.__module__}.{kind.__qualname__} {problem}" for problem in problems])
    name = f"{kind.__module__}.{kind.__qualname__}"
    wanted.require_methods(what, name, kind, Formula)
    return wanted.make(what, name, found) if isinstance(found, type) else found
