"""``SmetConfig``: which layers are sparse, how dense they are, and which remedies are on.

Dense AdamW, static sparsity, SET, RigL and SMET are settings of this one dataclass (``PRESETS``);
there is no second code path. Method and symbols: Xiao et al., arXiv 2606.00888.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, Literal, TypeVar

from smet.compute import problem as compute_problem
from smet.criteria import TABLES
from smet.errors import ConfigError, nearest
from smet.fields import choices, wrong_types
from smet.named import problem

C = TypeVar("C", bound=type)


def _method_first(cls: C) -> C:
    """Let the method that is named give the defaults, so that a config cannot name one and be another."""
    plain = vars(cls)["__init__"]

    @wraps(plain)
    def init(self: Any, **given: Any) -> None:
        plain(self, **self.with_preset(given))

    cls.__init__ = init  # type: ignore[misc]
    return cls


@_method_first
@dataclass(kw_only=True)
class SmetConfig:
    """Settings of sparse training. Steps are optimizer steps; fractions lie in [0, 1]."""

    method: str | None = None
    """Name of the preset (see ``PRESETS``) that gives what is not said here; a label once loaded."""
    density: float = 0.25
    """Fraction of tiles that stay active in the sparse layers, in (0, 1]; where it falls, that at the end."""
    initial_density: float | None = None
    """Density at first, of which ``density`` is left in the end (GMP, GraNet); storage keeps its first size. None = it
    never changes."""
    density_schedule: str = "cubic"
    """How density goes from ``initial_density`` to ``density``: ``cubic`` (GMP), an entry of ``prune_schedule``, or
    one's own."""
    density_end_fraction: float = 0.5
    """Fraction of the run after which ``density`` is reached: at the last topology update until then."""
    block: tuple[int, int] = (1, 1)
    """Rows and columns of one mask tile, in the canonical orientation of the matrix."""
    distribution: Literal["uniform", "erk"] = "uniform"
    """``uniform``: every layer at ``density``; ``erk``: Erdos-Renyi kernel, same total."""
    balance: Literal["auto", "always", "towards", "never"] = "auto"
    """Whether rows and columns of tiles have equal numbers of active ones at first, and updates keep these: ``auto``
    (where tiles are larger than 1 x 1), ``always``, ``towards`` (as ``always``, and updates bring masks that are loaded
    and were not balanced nearer to it), ``never``."""
    permute: Literal["none", "inputs", "both"] = "none"
    """Whether features are permuted, once and for all, before tiles are laid over a matrix (``smet.permutation``):
    ``none``, ``inputs``, ``both`` (outputs too). By chance then, and not by place, features share a tile."""
    include: tuple[str, ...] = ("*",)
    """Glob patterns of module names (whole dotted paths) that may become sparse."""
    exclude: tuple[str, ...] = ("*embed*", "*norm*", "*lm_head*")
    """Glob patterns of module names that stay dense whatever ``include`` says. ``*embed*`` and ``*norm*`` look at a
    layer's own last name, so that ``embedder.linear1`` may become sparse; all others at the whole dotted path."""

    update_interval: int = 100
    """Optimizer steps between topology updates; 0 = never (static sparsity)."""
    stop_fraction: float = 0.75
    """No topology update after this fraction of the run."""
    prune: str = "magnitude"
    """Which active tiles go: ``magnitude`` (L1), ``saliency`` (|w g|), ``age-protected``, or one's own; see
    ``smet.criteria``, also for the next ones. A name of one's own is ``package.module:function``."""
    prune_schedule: str = "cosine"
    """How the prune fraction goes from ``prune_start`` to ``prune_end``: ``cosine``, ``constant``, ``linear``, ``wsd``,
    ``cubic``, or one's own."""
    prune_start: float = 0.2
    """Fraction of a layer's active tiles replaced at the first update; where ``block`` and ``balance`` ask for balanced
    tiles, 0.05 unless it is said."""
    prune_end: float = 0.005
    """The same at the last update."""
    growth: str = "random"
    """``random`` (SET), ``gradient`` (RigL: largest |dense gradient| averaged over ranks), ``momentum`` (SNFS: largest
    mean of dense gradients, which is kept beside the model), or one's own."""
    mask_init: str = "random"
    """Which tiles are active at first: ``random``, ``magnitude`` (of the initial weights), ``snip`` and ``synflow``
    (by what the dense model computes, once), or one's own."""
    topology_ranges: int = 1
    """Equal row ranges of each layer that prune and grow by themselves. Decisions are the same at every
    tensor-parallel degree that divides it; 1 = as many as there are tensor-parallel ranks."""
    protect_rounds: int = 0
    """A tile younger than this many updates is not pruned, whatever the criterion (beyond the paper; 0 = off)."""

    bias_correction: Literal["local", "global"] = "local"
    """``local``: by the weight's own age; ``global``: by the run's step, as plain Adam does."""
    warmup_steps: int = 100
    """W: steps over which a regrown weight's update grows to full size; 0 = off."""
    warmup_scope: Literal["regrown", "all"] = "regrown"
    """``regrown`` weights only, or ``all`` (also those active from the start; for ablations)."""
    lr_exponent: float = 0.5
    """e: weights at density d train with lr * d**-e; 0 = off. d is what is really active, and d**-e at most 32."""
    fan_in_init: bool = True
    """Scale the initial standard deviation by density**-0.5, under the same bounds. Not where the first masks are
    chosen by the weights: those that are kept are no sample of all."""

    mask_residency: Literal["sharded", "replicated"] = "sharded"
    """``sharded``: each data-parallel rank keeps 1/D of the mask bits; ``replicated``: all of them."""
    weight_residency: Literal["compressed", "dense"] = "compressed"
    """``compressed``: the dense matrix lives only while its layer computes; ``dense``: kept between uses."""
    compute: str = "auto"
    """Who multiplies: ``auto``, ``tiles``, ``dense``, or ``package.module:Class`` of your own (``smet.compute``)."""
    seed: int = 0
    """Seed of initial masks and random growth."""

    def __post_init__(self) -> None:
        for name in ("block", "include", "exclude"):
            value = getattr(self, name)
            setattr(self, name, tuple(value) if isinstance(value, (list, tuple)) else value)

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each: found, expected, what to change."""
        wrong = wrong_types(self)
        found = [f"{name} is {text}" for name, text in wrong.items()]
        defaults: dict[str, Any] = {part.name: part.default for part in fields(self) if part.name in wrong}
        return found + replace(self, **defaults)._out_of_range()

    def _out_of_range(self) -> list[str]:
        found = []
        if self.method is not None and self.method not in PRESETS:
            found.append(
                f"method is '{self.method}', expected one of {', '.join(PRESETS)}{nearest(self.method, PRESETS)}"
            )
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                found.append(f"{name} is '{value}', expected one of {', '.join(allowed)}{nearest(value, allowed)}")
        named = [problem(name, getattr(self, name), table) for name, table in TABLES.items()]
        named.append(compute_problem("compute", self.compute))
        found += [text for text in named if text is not None]
        if not 0.0 < self.density <= 1.0:
            found.append(f"density is {self.density}, expected a fraction in (0, 1], such as 0.25")
        found += self._gradual_problems()
        if any(side < 1 for side in self.block):
            found.append(f"block is {list(self.block)}, expected two positive sizes, such as [1, 16]")
        for name in ("update_interval", "warmup_steps", "protect_rounds", "seed"):
            if getattr(self, name) < 0:
                found.append(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.topology_ranges < 1:
            found.append(f"topology_ranges is {self.topology_ranges}, expected 1 or more")
        if not 0.0 <= self.stop_fraction <= 1.0:
            found.append(f"stop_fraction is {self.stop_fraction}, expected a fraction in [0, 1]")
        for name in ("prune_start", "prune_end"):
            if not 0.0 <= getattr(self, name) < 1.0:
                found.append(
                    f"{name} is {getattr(self, name)}, expected a fraction in [0, 1): 1 replaces every active weight"
                )
        if not 0.0 <= self.lr_exponent <= 2.0:
            found.append(f"lr_exponent is {self.lr_exponent}, expected 0 (off) to 2, such as 0.5")
        return found

    def _gradual_problems(self) -> list[str]:
        found, first = [], self.initial_density
        if not 0.0 < self.density_end_fraction <= 1.0:
            found.append(f"density_end_fraction is {self.density_end_fraction}, expected a fraction in (0, 1]")
        if first is None:
            return found
        if not self.density <= first <= 1.0:
            found.append(
                f"initial_density is {first}, expected density {self.density} to 1, or null: density falls from the one"
                " to the other"
            )
        if not self.falls:
            return found
        for name in ("update_interval", "stop_fraction"):
            if getattr(self, name) == 0:
                found.append(f"{name} is 0 with initial_density {first}, expected more: density falls at updates")
        if self.density_end_fraction > self.stop_fraction > 0:
            found.append(
                f"density_end_fraction is {self.density_end_fraction}, expected at most stop_fraction"
                f" {self.stop_fraction}: density falls at topology updates, and there are none later"
            )
        if self.balance in _EVERYWHERE:
            found.append(
                f"balance is '{self.balance}' with initial_density {first}, expected auto or never: what closes goes by"
                " its score alone, so rows and columns do not stay alike"
            )
        if self.density_schedule == "constant":
            found.append("density_schedule is 'constant', with which density never falls, expected another, or no"
                         " initial_density")  # fmt: skip
        return found

    def check(self) -> SmetConfig:
        """Return self, or raise ``ConfigError`` with all problems."""
        if found := self.problems():
            raise ConfigError(found)
        return self

    @staticmethod
    def with_preset(given: dict[str, Any]) -> dict[str, Any]:
        """The keys of ``given`` on top of those of the preset that ``given["method"]`` names, and of what follows from
        others of them."""
        method = given.get("method")
        found = {**(PRESETS.get(method, {}) if isinstance(method, str) else {}), **given}
        block = (1, 1) if found.get("initial_density") is not None else found.get("block", (1, 1))  # falls: no balance
        if "prune_start" not in found and _balanced(found.get("balance", "auto"), block):
            found["prune_start"] = TILES_PRUNE_START
        return found

    @classmethod
    def preset(cls, method: str, **changes: Any) -> SmetConfig:
        """The settings of a named method, with ``changes`` on top."""
        if method not in PRESETS:
            raise ConfigError(f"method is '{method}', expected one of {', '.join(PRESETS)}{nearest(method, PRESETS)}")
        return cls(method=method, **changes)

    @property
    def first_density(self) -> float:
        """The density before the first topology update: what is stored all along."""
        return self.density if self.initial_density is None else self.initial_density

    @property
    def falls(self) -> bool:
        """Whether density falls during the run."""
        return self.first_density > self.density

    @property
    def dynamic(self) -> bool:
        """Whether the topology ever changes."""
        return self.update_interval > 0 and self.density < 1.0 and self.stop_fraction > 0

    def is_balanced(self, tile: tuple[int, int]) -> bool:
        """Whether layers of such tiles have balanced masks."""
        return _balanced(self.balance, tile) and not self.falls

    @property
    def is_permuted(self) -> bool:
        """Whether layers have permuted features: along a side of tiles of one feature that would change nothing."""
        return self.permute != "none" and max(self.block) > 1


CHOICES = choices(SmetConfig)
"""Settings that are one of a few words, and these."""

TILES_PRUNE_START = 0.05
"""``prune_start`` of balanced tiles: no rule was found by which replacing more of few, whole tiles pays
(docs/results-rewiring.md)."""


_EVERYWHERE = ("always", "towards")
"""``balance`` of tiles of any size."""


def _balanced(balance: Any, tile: Any) -> bool:
    whole = isinstance(tile, (list, tuple)) and tuple(tile) != (1, 1)
    return bool(balance in _EVERYWHERE or (balance == "auto" and whole))


_NAIVE = {"bias_correction": "global", "warmup_steps": 0, "lr_exponent": 0.0, "fan_in_init": False}

PRESETS: dict[str, dict[str, Any]] = {
    "smet": {},
    "dense": {"density": 1.0, "update_interval": 0, **_NAIVE},
    "static": {"update_interval": 0, **_NAIVE},
    "set": dict(_NAIVE),
    "rigl": {"growth": "gradient", **_NAIVE},
    "smet-rigl": {"growth": "gradient"},
    "gmp": {"initial_density": 1.0, "prune_start": 0.0, "prune_end": 0.0, **_NAIVE},
    "granet": {"initial_density": 0.5, "growth": "gradient", "prune_start": 0.5, **_NAIVE},
}
"""Named methods. All but ``smet`` and ``smet-rigl`` are naive baselines: global bias correction, no warm-up, e = 0.

``gmp`` prunes a dense model and grows nothing (Zhu and Gupta 2017, arXiv 1710.01878); ``granet`` starts at density 0.5,
and replaces by gradients while density falls (Liu et al. 2021, arXiv 2106.10404).
"""
