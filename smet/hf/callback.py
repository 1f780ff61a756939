"""``SmetCallback``: a ``transformers.Trainer`` trains a sparse model, in one process, under DDP, ZeRO and FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback

from smet.errors import ConfigError
from smet.hf import fsdp
from smet.hf.config import adopt
from smet.optim.aged import AgedOptimizer
from smet.optim.front import AdamW, ModelOptimizer
from smet.run import OnUpdate, Run, attach
from smet.settings import settings_of
from smet.update import UpdateReport

ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused")
"""Values of ``optim`` that mean AdamW, whoever implements it."""
TRANSFORMERS_BETAS = (0.9, 0.999)
"""Those of ``TrainingArguments`` where nobody gave any; 8-bit moments have a default of their own."""


class SmetCallback(TrainerCallback):
    """Gives a trainer the optimizer of its sparse model, lets its steps drive the topology, and logs what they do.

    ::

        smet.sparsify(model, density=0.25)
        trainer = Trainer(model, args, train_dataset=data)
        trainer.add_callback(SmetCallback(trainer))

    Learning rate, betas, eps and weight decay are those of ``TrainingArguments``. Each topology update is logged to
    what ``report_to`` names, under ``smet/``. TRL's trainers are Trainers too.

    Args:
        trainer: its model was made sparse by ``sparsify``. An optimizer that it was given has to be a ``smet.AdamW``
            or another ``ModelOptimizer``; under DeepSpeed give none, since transformers would drop it.
        formula: of the optimizer; see ``ModelOptimizer``.
        on_update: called with the report of each topology update, on every rank.
        options: the formula's, where it is not AdamW.

    Raises:
        ConfigError: the trainer cannot train it: says all that stands in the way.
    """

    def __init__(self, trainer: Any, formula: str = "adamw", on_update: OnUpdate | None = None, **options: Any):
        self.trainer = trainer
        self.run: Run | None = None
        """What ``attach`` gave, once training began."""
        self._began = False
        self._set_aside: Any = None
        self._formula, self._options, self._on_update = formula, options, on_update
        self._told: UpdateReport | None = None
        if not hasattr(trainer, "callback_handler"):
            raise ConfigError(
                f"SmetCallback was given a {type(trainer).__name__}, expected the trainer that it is added to"
            )
        if problems := [*_problems(trainer), *self._own_problems()]:
            raise ConfigError(problems)
        adopt(trainer.model)  # it may have been made sparse before smet.hf was imported
        if trainer.optimizer is None:
            trainer.optimizer_cls_and_kwargs = (_Factory(self), {})

    def _own_problems(self) -> list[str]:
        args = self.trainer.args
        if self.trainer.optimizer is not None:
            return []
        found = []
        optim = str(getattr(args.optim, "value", args.optim))
        if optim not in ADAMW:
            found.append(
                f"optim is '{optim}', which does not know ages of regrown weights; leave it out, or name a formula of"
                f" smet's: SmetCallback(trainer, formula='{'adamw_8bit' if '8bit' in optim else 'lion'}')"
            )
        given = self.trainer.optimizer_cls_and_kwargs
        if given is not None and not isinstance(given[0], _Factory):
            found.append(
                "the trainer was given optimizer_cls_and_kwargs, expected none: SmetCallback makes the optimizer"
            )
        return found

    def make_optimizer(self, model: nn.Module) -> ModelOptimizer:
        """The optimizer of ``model`` that the trainer's arguments ask for."""
        if self.run is not None and self.trainer.is_deepspeed_enabled:
            raise ConfigError("train() was called again under DeepSpeed; make a new model and Trainer, and resume")
        args = self.trainer.args
        optimizer: ModelOptimizer
        betas = (args.adam_beta1, args.adam_beta2)
        if self._formula != "adamw":
            given: dict[str, Any] = {}
            if self._formula == "adamw_8bit":
                given = {"eps": args.adam_epsilon, **({} if betas == TRANSFORMERS_BETAS else {"betas": betas})}
            options = {**given, **self._options}
            optimizer = ModelOptimizer(model, self._formula, args.learning_rate, args.weight_decay, **options)
        else:
            optimizer = AdamW(model, args.learning_rate, betas, args.adam_epsilon, args.weight_decay, **self._options)
        if self.trainer.is_fsdp_enabled:
            optimizer.attach_late = self._attach_late
            plugin = fsdp.plugin_of(self.trainer)
            if fsdp.is_whole(plugin):
                self._set_aside, plugin.state_dict_config = plugin.state_dict_config, fsdp.OnDevice()
        return optimizer

    def _attach_late(self) -> None:
        """Transformers is about to load the optimizer's state, which it has cut since it was made."""
        self.run = attach(self.trainer.optimizer, self.trainer.state.max_steps, self._keep)

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Attach to what takes the steps."""
        trainer, again, self._began = self.trainer, self._began, True
        if self._set_aside is not None:
            fsdp.plugin_of(trainer).state_dict_config, self._set_aside = self._set_aside, None
        if again and trainer.is_fsdp_enabled:
            raise ConfigError("train() was called again under fsdp; make a new model and Trainer, and resume")
        if again and self.run is not None:
            self.run.detach()
        handle = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.optimizer
        done = _clock(handle)
        if state.global_step and not done:
            raise ConfigError(
                f"the trainer goes on after step {state.global_step}, and the optimizer's clock stands at 0: the"
                " checkpoint has no optimizer state (save_only_model?), without which ages and the topology's schedule"
                " cannot be gone on with"
            )
        if again or self.run is None:
            # A second train() begins its steps anew, and the clock does not.
            total = state.max_steps if state.global_step else state.max_steps + done
            self.run = attach(handle, total, self._keep)

    def _keep(self, report: UpdateReport) -> None:
        self._told = report
        if self._on_update is not None:
            self._on_update(report)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Log the topology update that the step ended with, if it did."""
        report, self._told = self._told, None
        if report is None or self.run is None or str(getattr(args.logging_strategy, "value", "")) == "no":
            return
        wanted = control.should_log
        self.trainer.log(figures(report, self.run.topology.density))  # and is not the log that was wanted of the step
        control.should_log = wanted


class _Factory:
    """What a trainer calls where it would make an optimizer of its own."""

    def __init__(self, callback: SmetCallback):
        self.callback = callback

    def __call__(self, *groups: Any) -> ModelOptimizer | Callable[..., ModelOptimizer]:
        """Transformers calls what is no class of an optimizer twice; before 5.23 maybe once, with its groups."""
        make = self.callback.make_optimizer
        return make(self.callback.trainer.model) if groups else make


def figures(report: UpdateReport, density: float) -> dict[str, float]:
    """What is logged of a topology update: tiles over all layers, the fraction that was to be replaced, seconds."""
    names = ("update", "fraction", "pruned", "grown", "recycled", "unmoved", "seconds")
    return {**{f"smet/{name}": getattr(report, name) for name in names}, "smet/density": density}


def _clock(handle: Any) -> int:
    """Steps that the optimizer has done, which wrappers and engines hold."""
    while not isinstance(handle, AgedOptimizer):
        inside = getattr(handle, "optimizer", None)
        if inside is None:
            return 0  # attach says what it expected
        handle = inside
    return handle.steps_done


def _problems(trainer: Any) -> list[str]:
    found = []
    try:
        settings_of(trainer.model)
    except ConfigError as error:
        found += error.problems
    if trainer.is_fsdp_enabled:
        found += fsdp.problems_of(trainer)
    if trainer.args.n_gpu > 1:
        found.append(
            f"{trainer.args.n_gpu} GPUs in one process are DataParallel, which copies the model at each step; start a"
            " process per GPU: torchrun --nproc_per_node"
        )
    given = trainer.optimizer
    if trainer.is_deepspeed_enabled:
        if given is not None:
            found.append(
                "transformers drops optimizers=... under DeepSpeed; leave it out, SmetCallback makes the optimizer"
            )
        config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config
        if "optimizer" in config:
            found.append(
                "the DeepSpeed config has an optimizer, expected none: SmetCallback makes it; remove that section"
            )
        if config.get("zero_optimization", {}).get("stage", 0) not in (1, 2, 3):
            found.append("the DeepSpeed config runs no ZeRO, expected zero_optimization.stage 1, 2 or 3")
    elif given is not None and not isinstance(given, ModelOptimizer):
        kind = type(given)
        found.append(
            f"the trainer was given a {kind.__module__}.{kind.__qualname__}, expected smet.AdamW(model), or none:"
            " SmetCallback makes it"
        )
    return found
