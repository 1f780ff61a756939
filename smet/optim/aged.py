"""AgedOptimizer: the clock, each weight's age, and the state beside the weights; a formula computes the update."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from smet import dtensors
from smet.errors import ConfigError, nearest
from smet.kernels import checks
from smet.optim.ages import CODES, AgeTable, Remedies
from smet.optim.formula import CHUNK, KEPT, MATRICES, Formula, Values, made_of, require_flat
from smet.optim.groups import check_group

OWN = "smet"
"""Entry of a state that holds what torch's optimizers have not."""


@dataclass
class TopologyPosition:
    """Where the schedule of topology updates stands: it belongs to the state that the updates have moved."""

    updates_done: int | None = 0
    """Number of the last update; None after loading a state that was saved without it."""
    last_code: int = 0
    """Birth code of the tiles grown at the last update."""
    masks: str = ""
    """Digest of the masks in whose order the state is stored; empty where nobody has said."""
    seen: int | None = None
    """The optimizer step after which the topology was looked at last; None before anybody has."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """This rank's part of each layer's mean dense gradient, where a criterion needs it."""


class AgedOptimizer(torch.optim.Optimizer):
    """An optimizer over dense tensors and over the active values of sparse layers.

    Works on ordinary parameters, on what ``fully_shard`` (FSDP2) made of them, and on the flat partitions that ZeRO
    hands to ``step`` instead. A formula's state is fp32 unless it says otherwise (fp64 for fp64 weights); a 16-bit
    parameter gets an fp32 master copy.

    Args:
        params: parameters or groups. A group may set ``aged`` (its weights can be regrown),
            ``lr_factor`` (default 1; multiplies ``lr`` at every step, never compounds), ``lr``,
            ``weight_decay`` and the formula's options.
        formula: computes the updates; see ``smet.optim.formula``.
        remedies: bias correction and warm-up; see ``SmetConfig``. None = those of the topology controller's config, and
            until there is one the defaults.
        external_clock: True where an engine may call ``step`` any number of times per optimizer
            step (ZeRO-3 calls it once per sub-group, some engines once before training). Then
            nothing happens before ``start()``, and only ``advance()`` moves time.
        options: the formula's, for all groups that do not say otherwise.

    Raises:
        ConfigError: a parameter is not a plain, real floating-point tensor (a ``DTensor`` of others than
            ``fully_shard``, complex, sparse), a group says what cannot work (see ``smet.optim.groups``), or the formula
            requires what is not there.
    """

    formula: Formula
    attach_late: Callable[[], object] | None = None
    """Attaches, where torch asks for state before anybody else could; see ``ModelOptimizer``."""

    def __init__(
        self,
        params: Iterable[Any],
        formula: Formula | type[Formula],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        remedies: Remedies | None = None,
        external_clock: bool = False,
        **options: Any,
    ):
        self.formula = made_of("formula", formula)
        own = self.formula.defaults
        if unknown := [name for name in options if name not in own]:
            raise ConfigError([f"{self.formula.name} has no option '{name}'{nearest(name, own)}" for name in unknown])
        if external_clock:
            require_flat(self.formula)
        defaults = {"lr": lr, **own, **options, "weight_decay": weight_decay, "lr_factor": 1.0, "aged": False}
        self.ages = AgeTable(remedies=remedies or Remedies())
        self.remedies_told = remedies is not None
        """Whether the remedies were given; others follow the config of the controller."""
        super().__init__(params, defaults)
        self.steps_done = 0
        self.topology = TopologyPosition()
        """Replaced by another object when a state is loaded."""
        self.own_factors: dict[Tensor, float] = {}
        """``lr_factor`` of parameters that have another one than their group."""
        self.driver: Any = None
        """Weak reference to the controller that changes the topology of what is optimized here, if there is one."""
        self.external_clock = external_clock
        self._running = not external_clock

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See ``torch.optim.Optimizer``. Parameters given at first come this way too, and all are checked here.

        Raises:
            ConfigError: see the class.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        name = str(group.get("name", len(self.param_groups) - 1))
        try:
            check_group(name, group, self.formula)
            for index, param in enumerate(group["params"]):
                self._check_parameter(f"parameter {index} of group '{name}'", param)
        except ConfigError:
            del self.param_groups[-1]
            raise
        self._slowest_averages()

    def _check_parameter(self, name: str, param: Tensor) -> None:
        """Refuse what this optimizer has no rule for, before anything is trained."""
        if dtensors.is_cut(param):
            dtensors.require_range(name, param)
            require_flat(self.formula)
        checks.real(name, dtensors.own(param))
        if param.is_meta:
            raise ConfigError(f"{name} is on the meta device; materialise the model before you make its optimizer")
        if MATRICES in self.formula.requires and param.dim() != 2:
            raise ConfigError(
                f"{name} has the shape {tuple(param.shape)}, and {self.formula.name} requires matrices, expected two"
                " dimensions; give vectors, and a sparse layer's values, to a formula that works on flat values, such"
                " as adamw"
            )

    def start(self) -> None:
        """Let ``step`` change weights from now on, and ``advance()`` alone move time: an engine's clock.

        Raises:
            ConfigError: the formula requires matrices, which an engine's partitions are not.
        """
        require_flat(self.formula)
        self.external_clock = self._running = True

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """What torch puts around ``step``; ``torch.compile`` is to leave it as it is, and the topology that follows it:
        clock and step sizes are numbers that change, and would be constants of a graph."""
        whole = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(*arguments: Any, **options: Any) -> Any:
            if not is_dynamo_compiling():
                return whole(*arguments, **options)
            from smet import untraced

            return untraced.call(whole, *arguments, **options)

        return step

    def _takes_steps(self) -> bool:
        """Whether ``step`` may change weights now.

        Raises:
            ConfigError: parameters are cut, and nobody has asked all ranks about them.
        """
        held = (param for group in self.param_groups for param in group["params"])
        if self.driver is None and any(dtensors.is_cut(param) for param in held):
            raise ConfigError(
                "fully_shard cut the parameters; call smet.attach(optimizer, total_steps) before the first step, and"
                " before the optimizer's state is loaded"
            )
        return self._running

    def advance(self) -> None:
        """Record that one optimizer step was applied: every age grows by one."""
        self.steps_done += 1

    def ensure_state(self, param: Tensor, aged: bool) -> dict[str, Tensor]:
        """Create the state of one parameter or partition if it is not there yet, and return it."""
        state = self.state[param]
        declared = self.formula.state
        if declared and all(one.name in state for one in declared):
            return state
        dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        for one in declared:
            state[one.name] = dtensors.zeros_beside(param, one.dtype or dtype)
        if aged and "birth" not in state:
            state["birth"] = dtensors.zeros_beside(param, torch.uint8)
        if param.dtype not in (torch.float32, torch.float64) and "master" not in state:
            state["master"] = param.detach().to(dtype, copy=True).contiguous()
        return state

    def _slowest_averages(self) -> None:
        """Codes mature by the slowest decay there has been: groups come later, and schedulers change options."""
        for group in self.param_groups:
            self.ages.slow_down(self.formula.averages(group))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one step to every parameter that has a gradient.

        Returns:
            What ``closure`` returned, if one was given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._takes_steps():
            return loss
        self._slowest_averages()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.requires_grad:  # a frozen one may have an old gradient
                    self._update(param, param.grad, group)
        if not self.external_clock:
            self.advance()
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        rate = float(group["lr"]) * self.own_factors.get(param, group["lr_factor"])
        state = {key: dtensors.own(value) for key, value in self.ensure_state(param, group["aged"]).items()}
        shape, param, grad = param.shape, dtensors.own(param), dtensors.own_gradient(param, grad)
        master = state.get("master", param).detach()
        self._check_state(param, grad, master, state)
        flat = master.reshape(-1)  # a copy where the memory has another order (channels_last)
        birth = state["birth"].view(-1) if "birth" in state else None
        whole = Values(
            flat, grad.reshape(-1), {one.name: state[one.name].view(-1) for one in self.formula.state}, birth,
            rate, group, self.ages, self.steps_done + 1, shape,
        )  # fmt: skip
        size = CHUNK if self.formula.in_chunks and not self.formula.requires else max(1, flat.numel())
        for part in whole.parts(size):
            self.formula.update(part)
        if not master.is_contiguous():
            master.copy_(flat.view_as(master))
        if "master" in state:
            param.copy_(master)

    def _check_state(self, param: Tensor, grad: Tensor, master: Tensor, state: dict[str, Tensor]) -> None:
        """Refuse a gradient of another kind, and state that does not fit its parameter any more."""
        checks.traceable(f"the gradient of a parameter of shape {tuple(param.shape)}", grad)
        for one in self.formula.state:
            made = state[one.name]
            if (made.dtype, made.device, made.shape) != (one.dtype or master.dtype, master.device, master.shape):
                raise ConfigError(
                    f"a parameter is {_kind(master)} now and was {_kind(made)} when its optimizer state was made; "
                    "convert or move the model before you make its optimizer"
                )

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict, plus the clock, the age table and the place in the topology's schedule under ``smet``.

        The first group has these too: ``torch.distributed.checkpoint.state_dict`` keeps groups, and no other entries.
        Before the first step there is a state for every parameter, since that loads what it finds a place for; not
        where somebody attaches late, and others are about to cut the parameters.
        """
        waits = self.attach_late is not None and self.driver is None
        for group in self.param_groups if self.steps_done == 0 and not waits else []:
            for param in group["params"]:
                if param.requires_grad:
                    self.ensure_state(param, group["aged"])
        moments = {name: mean.clone() for name, mean in self.topology.moments.items()}
        own = {
            "formula": self.formula.name, "steps_done": self.steps_done, **self.ages.state_dict(),
            "topology": {**asdict(replace(self.topology, moments={})), "moments": moments},
        }  # fmt: skip
        whole = super().state_dict()
        groups = [{**group, OWN: own} if index == 0 else group for index, group in enumerate(whole["param_groups"])]
        return {**whole, "param_groups": groups, OWN: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore ``state_dict``; birth codes keep their one-byte type.

        Raises:
            ConfigError: it was not saved by this class, or for another formula or parameters of other sizes. Nothing is
                changed.
        """
        own, state_dict = _separated(state_dict)
        position = _position(own, state_dict)
        self._require_own_state(own.get("formula", "adamw"), state_dict["state"])  # old states name no formula
        saved_as = [name for group in state_dict["param_groups"] for name in group["params"]]  # numbers, or full names
        own_params = [param for group in self.param_groups for param in group["params"]]
        params = dict(zip(saved_as, own_params, strict=False))  # torch says how many there should be
        if not self.external_clock:  # an engine's partitions may be cut anew before they are loaded
            _check_sizes(state_dict["state"], params)
        super().load_state_dict(state_dict)
        for name, saved in state_dict["state"].items():  # torch casts state to the parameter's dtype: undo that
            for key, value in saved.items():
                self.state[params[name]][key] = value.to(params[name].device, copy=True).contiguous()
        self.steps_done = own["steps_done"]
        self.ages.load_state_dict(own)
        self.topology = position
        if self.topology.seen is None:
            self.topology.seen = self.steps_done

    def _require_own_state(self, formula: Any, states: dict[int, dict[str, Tensor]]) -> None:
        names = [one.name for one in self.formula.state]
        held = sorted({key for state in states.values() for key in state} - set(KEPT))
        if formula != self.formula.name or (held and held != sorted(names)):
            raise ConfigError(
                f"the optimizer state is that of {formula} ({', '.join(held) or 'nothing'} per weight), expected "
                f"{self.formula.name} ({', '.join(names) or 'nothing'}); make the optimizer that saved it, or begin "
                "with a new state"
            )

    def __getstate__(self) -> dict[str, Any]:
        """What pickles and copies carry: torch keeps only its own three entries."""
        own = ("formula", "ages", "remedies_told", "steps_done", "topology", "external_clock", "_running")
        return {
            **super().__getstate__(),
            **{name: getattr(self, name) for name in own},
            "driver": None,
            "own_factors": {},
        }


def _separated(state_dict: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The entry ``smet`` of a state, wherever it is, and the state without it.

    Raises:
        ConfigError: there is none.
    """
    groups = state_dict.get("param_groups", [])
    held = [group[OWN] for group in groups if isinstance(group, dict) and OWN in group]
    own = state_dict.get(OWN, held[0] if held else None)
    if own is None:
        raise ConfigError(
            f"the optimizer state has the entries {', '.join(map(str, state_dict))} and no 'smet', expected one "
            "saved by the same optimizer: its clock and ages cannot be guessed"
        )
    rest = {key: value for key, value in state_dict.items() if key != OWN}
    if held:
        rest["param_groups"] = [{key: value for key, value in group.items() if key != OWN} for group in groups]
    return own, rest


def _position(own: Any, whole: dict[str, Any]) -> TopologyPosition:
    """Read the entry 'smet' of a state, all of which is looked at before any of it is taken.

    Raises:
        ConfigError: it is damaged, or the entries beside it are missing.
    """
    try:
        steps, births = own["steps_done"], own["births"]
        sound = isinstance(steps, int) and steps >= 0 and births[0] == 0 and len(births) == CODES
        sound = sound and all(birth is None or 0 <= birth <= steps for birth in births)
        sound = sound and all(first <= last for _, first, last in own.get("spans", []))
        position = TopologyPosition(**own.get("topology", {"updates_done": None if steps else 0, "seen": steps}))
        if sound and {"state", "param_groups"} <= whole.keys():
            return position
    except (TypeError, KeyError, ValueError, IndexError, AttributeError):
        pass
    raise ConfigError(
        "the optimizer state is damaged or incomplete: expected torch's entries state and param_groups, and under "
        f"'smet' steps_done, {CODES} births, spans and topology, as state_dict() gives them"
    )


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def _check_sizes(state: dict[Any, dict[str, Tensor]], params: dict[Any, Tensor]) -> None:
    for name in state.keys() & params.keys():
        for key, value in state[name].items():
            if value.shape != params[name].shape:
                raise ConfigError(
                    f"the optimizer state has '{key}' of shape {tuple(value.shape)} for parameter {name}, which has "
                    f"{tuple(params[name].shape)}: it is of a model of another shape or density"
                )
            if dtensors.is_cut(value) != dtensors.is_cut(params[name]):
                raise ConfigError(
                    f"the optimizer state has '{key}' of parameter {name} as a {type(value).__name__}, and the"
                    f" parameter is a {type(params[name].detach()).__name__}: load it by set_optimizer_state_dict of"
                    " torch.distributed.checkpoint.state_dict, with full_state_dict=True"
                )
