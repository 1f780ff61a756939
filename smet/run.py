"""``attach``: from now on the steps of an optimizer, or of a DeepSpeed engine, drive the topology of its model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from smet.agreement import differing, of_all
from smet.bank import MaskBank
from smet.carried import complete, watch_state_dicts
from smet.controller import TopologyController
from smet.dtensors import is_cut
from smet.errors import ConfigError
from smet.experts import SparseExpert
from smet.linear import sparse_layers
from smet.measured import measure
from smet.optim.aged import AgedOptimizer
from smet.optim.front import ModelOptimizer
from smet.say import say
from smet.settings import settings_of, unwrapped
from smet.store import LocalStore, ParameterStore
from smet.tickets import ticket_for
from smet.update import UpdateReport

Replicas = dist.ProcessGroup | Literal["all"] | None
OnUpdate = Callable[[UpdateReport], object]
End = Callable[[], None]
Completion = Callable[[dict[str, Any] | None], None]
Served = tuple[nn.Module, ParameterStore, Callable[[Callable[[], None]], End], Callable[[Completion], End]]
"""Model, its store, what calls an action after each step, and what gives state dicts that an engine makes of parameters
and buffers alone to be completed; both until what they return is called."""


_runs: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Run]] = weakref.WeakKeyDictionary()
"""Sparse layer -> who changes it. A run that nobody holds any more lives on until somebody collects it."""


class Run:
    """What ``attach`` gives back. Nobody has to keep it: the steps do."""

    def __init__(self, topology: TopologyController, on_update: OnUpdate | None):
        self.topology = topology
        """Masks' digest, schedule and clock, should you want them."""
        self.last_report: UpdateReport | None = None
        """What the last topology update did."""
        self._on_update = on_update
        self._ends: list[Callable[[], None]] = []

    @property
    def updates_done(self) -> int:
        """Topology updates so far, those before resuming among them."""
        return self.topology.updates_done

    def _after_step(self) -> None:
        report = self.topology.after_step()
        self.topology.before_step()  # of the next step
        if report is not None:
            self.last_report = report
            if self._on_update is not None:
                self._on_update(report)

    def detach(self) -> None:
        """Let steps change the topology no more; the optimizer may then be attached again."""
        for end in self._ends:
            end()
        self._ends.clear()
        self.topology.gradients.stop(self.topology.layers.values())
        self.topology.store.optimizer.driver = _nobody


def _nobody() -> None:
    """The driver of an optimizer after ``detach``, and other ends of nothing."""


class _BeforeForward:
    """Begins the step anew where the last one was skipped, and nobody called the optimizer.

    Copies and pickles of a model take its hooks along: theirs do nothing.
    """

    def __init__(self, run: Run | None = None):
        self._run = weakref.ref(run) if run is not None else None
        self.ticket = ticket_for(self)
        self.clock = torch.zeros((), dtype=torch.int64, device="cpu")
        """Forward passes of a compiled model."""

    def __call__(self, *_: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if torch.compiler.is_compiling():
            from smet import operators

            operators.begin(self)
        else:
            self.begin()

    def begin(self) -> None:
        """What is done before each forward pass that trains."""
        run = self._run() if self._run is not None else None
        if run is not None:
            run.topology.before_step()

    def __reduce__(self) -> tuple[type[_BeforeForward], tuple[()]]:
        return _BeforeForward, ()


def attach(
    handle: Any, total_steps: int, on_update: OnUpdate | None = None, replicas: Replicas = "all",
    tokens: int | None = None, dtype: torch.dtype | None = None,
) -> Run:  # fmt: skip
    """From now on the steps of ``handle`` drive the topology. Collective over the ranks that train the model.

    A step that a scaler or an accumulation leaves out changes nothing. The topology's clock is the optimizer's, and is
    saved with its state; masks are with the model's. Where an engine's ranks share the masks out, ``state_dict()`` of
    the model has to be called on all of them, as DeepSpeed does when it saves.

    What an earlier ``attach`` did to the same layers, with another optimizer, ends.

    Args:
        handle: an ``AdamW`` or other ``ModelOptimizer``, also inside accelerate's wrapper or of a model that
            ``fully_shard`` (FSDP2) cut, or a DeepSpeed engine that runs one by ZeRO 1, 2 or 3.
        total_steps: length of the run in optimizer steps.
        on_update: called with the report of each topology update.
        replicas: see ``LocalStore``; an engine knows its own.
        tokens: rows that a layer's input has in one forward pass, such as sequences times their length: where
            ``compute`` is ``auto``, who multiplies is then measured, here and once (``smet.measured``). Without it a
            table decides.
        dtype: what layers multiply in, where that is not the type of their values: autocast's.

    Raises:
        ConfigError: ``handle`` is something else, or attached already; ``tokens`` is no positive number, or not the
            same on all ranks; see ``TopologyController`` for the rest.
    """
    model, store, after_each_step, complete_each = _served(handle, replicas)
    optimizer = store.optimizer
    if optimizer.driver is not None and optimizer.driver() is not None:
        raise ConfigError("the optimizer is attached already; call detach() of what attach returned, then do it again")
    if optimizer.driver is _nobody:
        optimizer.topology.seen = optimizer.steps_done  # updates that fell due meanwhile are not made up for
    _end_earlier(model)
    config = settings_of(model)
    bank = MaskBank(model, store.group, replicated=config.mask_residency == "replicated")
    run = Run(TopologyController(model, config, store, bank, total_steps), on_update)
    _runs.update(dict.fromkeys(run.topology.all_layers.values(), weakref.ref(run)))
    run._ends.append(after_each_step(run._after_step))
    if run.topology.gradients.needed:
        # Before others gather parameters, whose gradients are elsewhere.
        run._ends.append(model.register_forward_pre_hook(_BeforeForward(run), prepend=True).remove)
    run._ends.append(complete_each(partial(complete, model, bank)))
    if bank.sharded:
        run._ends += watch_state_dicts(model, bank)
    run.topology.before_step()
    _choose_products(run, tokens, dtype)
    return run


def _end_earlier(model: nn.Module) -> None:
    """Detach what has changed these layers so far: two would take each other's gradients, and both go on as if not."""
    held = {_runs[layer] for layer in sparse_layers(model).values() if layer in _runs}
    for run in filter(None, (held_by() for held_by in held)):
        run.detach()


def _choose_products(run: Run, tokens: int | None, dtype: torch.dtype | None) -> None:
    """Let what is faster multiply, on all ranks alike, and say so. Collective."""
    store, layers = run.topology.store, run.topology.all_layers
    group = store.group or store.replicas
    if found := differing({"tokens": tokens, "dtype": dtype}, group):
        raise ConfigError(f"{' and '.join(found)} of attach differ between ranks, which have to multiply alike")
    if tokens is None:
        return
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"tokens is {tokens!r}, expected the rows of a layer's input in one forward pass")

    dtype = dtype or next((layer.values.dtype for layer in layers.values()), torch.float32)
    first = group is None or dist.get_rank(group) == 0
    multiplying = [layer for layer in layers.values() if not isinstance(layer, SparseExpert)]  # those are only read
    for line in measure(multiplying, tokens, dtype, partial(of_all, group=group), first).describe():
        say(f"smet: {line}")


def _served(handle: Any, replicas: Replicas) -> Served:
    for knows, serve in ENGINES:
        if knows(handle):
            return serve(handle, replicas)
    hint = "see docs/library.md"
    if isinstance(handle, AgedOptimizer):
        hint = "make the optimizer by smet.AdamW(model)"
    elif isinstance(handle, nn.Module):
        hint = "give it the optimizer that steps the model"
    raise ConfigError(
        f"attach was given a {type(handle).__module__}.{type(handle).__qualname__}, expected a smet.AdamW or a"
        f" DeepSpeed engine; {hint}"
    )


def _of_torch(handle: Any, replicas: Replicas) -> Served:
    optimizer = _inside(handle)
    if not optimizer.holds_parameters():
        raise ConfigError(
            "the optimizer does not hold the model's parameters; where an engine runs it, attach to that, and where"
            " fully_shard cuts the model, make the optimizer after it"
        )
    return optimizer.model, LocalStore(optimizer, replicas), partial(_after_steps_of, optimizer), lambda _: _nobody


def _after_steps_of(optimizer: Any, action: Callable[[], None]) -> End:
    end: End = optimizer.register_step_post_hook(lambda *_: action()).remove
    return end


def _of_fsdp(handle: Any, replicas: Replicas) -> Served:
    from smet.fsdp import FsdpStore

    if replicas != "all":
        raise ConfigError("replicas is given with a model that fully_shard cut, whose mesh has the ranks; leave it out")
    optimizer = _inside(handle)
    store = FsdpStore(optimizer, optimizer.model)
    return optimizer.model, store, partial(_after_steps_of, optimizer), lambda _: _nobody


def _is_cut(handle: Any) -> bool:
    optimizer = _inside(handle)
    if not isinstance(optimizer, ModelOptimizer):
        return False
    return any(is_cut(param) for group in optimizer.param_groups for param in group["params"])


def _inside(handle: Any) -> Any:
    """The optimizer that wrappers such as accelerate's hold."""
    inside = getattr(handle, "optimizer", None) if isinstance(handle, torch.optim.Optimizer) else None
    return _inside(inside) if inside is not None else handle


def _of_deepspeed(engine: Any, replicas: Replicas) -> Served:
    from smet.zero import ZeroStore

    if replicas != "all":
        raise ConfigError("replicas is given with a DeepSpeed engine, which knows its ranks; leave it out")
    store = ZeroStore(engine)
    return unwrapped(engine), store, store.after_each_step, store.complete_each_state


ENGINES: list[tuple[Callable[[Any], bool], Callable[[Any, Replicas], Served]]] = [
    (_is_cut, _of_fsdp),
    (lambda handle: isinstance(_inside(handle), ModelOptimizer), _of_torch),
    (lambda handle: type(handle).__name__ == "DeepSpeedEngine", _of_deepspeed),
]
"""(is it mine, what serves it): one entry per kind of handle."""
