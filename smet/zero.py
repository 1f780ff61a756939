"""DeepSpeed's ZeRO 1, 2 and 3: where this rank's master weights and optimizer state are.

The only file that touches DeepSpeed internals (checked against deepspeed 0.19.8).

Stages 1 and 2 flatten each parameter group, pad its end and cut it evenly over ranks, so that a
parameter may be cut at any offset. Stage 3 pads and cuts each parameter by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smet.errors import ConfigError
from smet.optim.aged import AgedOptimizer
from smet.store import Fragment, state_kind

SUPPORTED = ("DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3")


class ZeroStore:
    """The fragments of a ``deepspeed.initialize``d engine whose client optimizer is an ``AgedOptimizer``.

    Creating it allocates the optimizer state and starts the optimizer's clock.

    Raises:
        ConfigError: the engine's optimizer is not ZeRO 1, 2 or 3 over an ``AgedOptimizer``, its formula does not work
            on flat values, or it is to load a universal checkpoint.
    """

    skips_frozen = False  # the optimizer sees flat partitions, and no parameters in them
    mesh: Any = None

    def __init__(self, engine: Any):
        self.engine = engine
        self.zero: Any = engine.optimizer
        kind = type(self.zero).__name__
        client = getattr(self.zero, "optimizer", None)
        if kind not in SUPPORTED or not isinstance(client, AgedOptimizer):
            raise ConfigError(
                f"the engine runs {kind} over {type(client).__name__}, expected ZeRO 1, 2 or 3 over SmetAdamW "
                "or another AgedOptimizer; "
                "set the stage to 1, 2 or 3 (zero_optimization.stage) and leave data_types.grad_accum_dtype unset"
            )
        if engine.load_universal_checkpoint() and any(group["aged"] for group in client.param_groups):
            raise ConfigError(
                "checkpoint.load_universal is set, and DeepSpeed's universal format has no ages of regrown weights;"
                " take it out, and load a checkpoint of the same layout"
            )
        self.optimizer = client
        self.stage3 = kind == "DeepSpeedZeroOptimizer_Stage3"
        ranks = dist.get_world_size(self.zero.dp_process_group)
        self.group: dist.ProcessGroup | None = self.zero.dp_process_group if ranks > 1 else None
        self.replicas = self.group
        self._vetoed = False
        for flat, options in self._partitions():
            self.optimizer.ensure_state(flat, options["aged"])
        self.optimizer.start()

    def _partitions(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """(flat fp32 partition of this rank, options of its parameter group)."""
        zero = self.zero
        if self.stage3:
            for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
                yield flat, self.optimizer.param_groups[zero.sub_group_to_group_id[index]]
        else:
            yield from zip(zero.single_partition_of_fp32_groups, self.optimizer.param_groups, strict=True)

    def collective_facts(self) -> dict[str, list[str]]:
        """What must be alike on all ranks, or they wait in different calls: a norm is one all-reduce per group.

        ``groups``: name and dtypes of each parameter group (at stage 3, sub-group) in order; ``tied``: name, shape and
        dtype of each parameter that pipeline stages share, on the ranks that have it.
        """
        weights = self.zero.fp16_groups if self.stage3 else self.zero.bit16_groups
        groups = [
            f"{options.get('name', 'all')} ({_dtypes(params)}, master weights {_dtypes([flat])})"
            for params, (flat, options) in zip(weights, self._partitions(), strict=True)
        ]
        tied = [
            f"{key}.{attribute} ({_dtypes([weight])} {list(weight.shape)})"
            for key, shared in sorted(getattr(self.engine.module, "tied_comms", {}).items())
            for attribute in shared["weight_attr"]
            for weight in [shared["module"].get_parameter(attribute)]
        ]
        return {"groups": groups, "tied": tied}

    def fragment(self, param: nn.Parameter) -> Fragment:
        """This rank's fragment of ``param``; empty where it owns nothing."""
        flat, offset, start, length, total = self._address(param)
        state = self.optimizer.state[flat]
        views = {key: value.view(-1).narrow(0, offset, length) for key, value in state.items()}
        return Fragment(start, total, flat.detach().narrow(0, offset, length), views)

    def _address(self, param: Any) -> tuple[Tensor, int, int, int, int]:
        """(flat partition, offset in it, start in the parameter, length, parameter's length)."""
        if self.stage3:
            index, offset, size = self.zero.grad_position[self.zero.get_param_id(param)]
            start = min(size * dist.get_rank(self.zero.dp_process_group), param.ds_numel)
            length = min(size, param.ds_numel - start)
            return self.zero.fp32_partitioned_groups_flat[index], offset, start, length, param.ds_numel
        mapping = param._hp_mapping
        if mapping is None:
            group = self._group_index(param)
            return self.zero.single_partition_of_fp32_groups[group], 0, 0, 0, param.numel()
        inside = mapping.lp_fragment_address
        flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return flat, mapping.hp_fragment_address.start, inside.start, inside.numel, param.numel()

    def _group_index(self, param: nn.Parameter) -> int:
        for index, params in enumerate(self.zero.bit16_groups):
            if any(param is other for other in params):
                return index
        raise KeyError("parameter does not belong to this engine's optimizer")

    def publish(self) -> None:
        """Copy all master weights into the parameters that compute. Collective."""
        if not self.stage3:
            self.zero.update_lp_params()
            return
        small = self.zero.persistent_parameters  # kept gathered by DeepSpeed: drop the old copies first
        if small:
            small[0].partition(small)
        for index in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(index)
        if small:
            small[0].all_gather(small)

    def before_each_step(self, action: Callable[[], None]) -> Callable[[], None]:
        """Call ``action`` whenever the last backward of a step is done and before its gradients are used.

        Works alike for engines whose caller sees that moment and for pipeline engines, where nobody does.

        Returns:
            Call it to end that.
        """
        original = self.zero.step

        def step(*arguments: Any, **options: Any) -> Any:
            action()
            return original(*arguments, **options)

        def end() -> None:
            self.zero.step = original

        self.zero.step = step
        return end

    def after_each_step(self, action: Callable[[], None]) -> Callable[[], None]:
        """Call ``action`` after each ``engine.step`` that used gradients up: not within an accumulation.

        Returns:
            Call it to end that.
        """
        original = self.engine.step

        def step(*arguments: Any, **options: Any) -> Any:
            before = self.ticks()
            result = original(*arguments, **options)
            if self.ticks() != before:
                action()
            return result

        def end() -> None:
            self.engine.step = original

        self.engine.step = step
        return end

    def complete_each_state(self, completion: Callable[[dict[str, Any] | None], None]) -> Callable[[], None]:
        """Call ``completion`` with each state dict that ZeRO-3 puts together, on all ranks; None on those without it.

        DeepSpeed, accelerate and transformers save models by it, and modules are not asked what they have to say.

        Returns:
            Call it to end that.
        """
        original = self.engine._zero3_consolidated_16bit_state_dict

        def consolidated(*arguments: Any, **options: Any) -> Any:
            state = original(*arguments, **options)
            completion(state)
            return state

        def end() -> None:
            self.engine._zero3_consolidated_16bit_state_dict = original

        self.engine._zero3_consolidated_16bit_state_dict = consolidated
        return end

    def decide_each_step(self, skip: Callable[[float], bool]) -> None:
        """Ask ``skip`` at every step, with the global gradient norm, whether to leave it out as after an overflow.

        Every rank must give the same answer. Steps whose gradients are not finite are left out unasked. DeepSpeed
        takes a step that ``skip`` leaves out for an overflow too, but neither says so nor lowers its loss scale.
        """
        from deepspeed.runtime.utils import combine_grad_norm_groups, is_invalid_grad_norm

        def asked(*arguments: Any, **options: Any) -> Any:
            norms = original(*arguments, **options)
            norm = combine_grad_norm_groups(norms if self.stage3 else [norms])
            scale = self.zero.loss_scale
            self._vetoed = not is_invalid_grad_norm(norm) and skip(float(norm) / float(scale))
            if not self._vetoed:
                return norms
            return [float("inf")] if self.stage3 else torch.full_like(norm, float("inf"))

        name = "_get_norm_groups" if self.stage3 else "scaled_global_norm"
        original = getattr(self.zero, name)
        setattr(self.zero, name, asked)
        update_scale = self.zero._update_scale

        def told(has_overflow: bool = False) -> None:
            update_scale(has_overflow and not self._vetoed)
            self._vetoed = False

        self.zero._update_scale = told

    def step_applied(self) -> bool:
        """Whether the engine's last ``step`` changed weights."""
        return bool(self.engine.was_step_applied())

    def ticks(self) -> int:
        """Steps of the engine, with those that it left out."""
        return int(self.engine.global_steps)

    def settle(self) -> None:
        """Parameters stay who they are, whatever they hold."""

    def has_gradients(self) -> bool:
        """The engine knows where a step begins: see ``ticks``."""
        return True

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradients, before clipping; inf after an overflow."""
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def live_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """See ``smet.store.ParameterStore``. Call it at a step's last backward to see its gradients."""
        for index, (flat, options) in enumerate(self._partitions()):
            if options.get(PLACEHOLDER):
                continue
            name = options.get("name", "all")
            yield "master", name, flat
            if flat.grad is not None:  # ZeRO-Offload's copy in host memory; without it, gone when the step is done
                yield "gradients", name, flat.grad
            for key, value in self.optimizer.state[flat].items():
                yield state_kind(key), name, value
            params = self.zero.fp16_groups[index] if self.stage3 else self.zero.bit16_groups[index]
            yield from (("weights", name, tensor) for tensor in self._weights(index, params))
            yield from (("gradients", name, tensor) for tensor in self._gradients(index, params))

    def _weights(self, index: int, params: list[Any]) -> Iterator[Tensor]:
        if not self.stage3:
            yield self.zero.bit16_groups_flat[index]
            return
        for param in params:
            yield param.ds_tensor.data
            if param.data.numel() > 1:
                yield param.data

    def _gradients(self, index: int, params: list[Any]) -> Iterator[Tensor]:
        if self.stage3:
            partitions = self.zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
            yield from (partitions[param.ds_id] for param in params)
            return
        yield from (param.grad for param in params if param.grad is not None)
        held = self.zero.averaged_gradients.get(index)
        if held is not None:
            yield from (grad for grad in held if torch.is_tensor(grad))
        added_up = getattr(self.zero, "accumulated_grads_in_cpu", {})  # ZeRO-Offload's, with several micro-batches
        owned = (self.zero.get_param_id(param) for param in params)
        yield from (added_up[number] for number in owned if number in added_up)


PLACEHOLDER = "placeholder"
"""Key of the parameter groups that are on this rank only because other ranks have something in them."""


def fill_up_groups(
    groups: list[dict[str, Any]], everyones: Sequence[list[dict[str, Any]]], module: nn.Module
) -> list[dict[str, Any]]:
    """``groups``, and one with a placeholder of one element for each group that only other ranks have.

    DeepSpeed drops groups without parameters, and its norm does one all-reduce per group: ranks with different
    groups, such as pipeline stages without a sparse layer, would wait in different calls.

    Args:
        groups: optimizer groups of this rank.
        everyones: options of the groups of each rank, this one among them, without their ``params``.
        module: what the engine runs; gets the placeholders as parameters. No norm counts them.
    """
    own = {_options(group): group for group in groups}
    filled: list[dict[str, Any]] = []
    for options, example in {_options(group): group for other in everyones for group in other}.items():
        if options not in own:
            param: Any = nn.Parameter(torch.zeros(1))
            param.ds_pipe_replicated = True  # in DeepSpeed's norm, another rank's part
            module.register_parameter(f"{PLACEHOLDER}_{len(filled)}", param)
            own[options] = {**example, "params": [param], PLACEHOLDER: True}
        filled.append(own[options])
    return filled


def _options(group: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, repr(value)) for key, value in group.items() if key != "params"))


def _dtypes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))


def is_partitioned(param: Tensor) -> bool:
    """Whether ZeRO-3 cuts ``param`` up, and gathers it only where it computes."""
    return hasattr(param, "ds_id")


def whole_shape(param: Tensor) -> torch.Size:
    """Shape of ``param``; ZeRO-3 leaves a placeholder of no elements, and says elsewhere what was there."""
    shape: torch.Size = getattr(param, "ds_shape", param.shape)
    return shape


def pipeline_module(specs: list[Any], bounds: Sequence[int], **options: Any) -> Any:
    """A ``PipelineModule`` that is cut where its caller says.

    Args:
        specs: one ``LayerSpec`` per block.
        bounds: first block of each stage, and the number of blocks at the end.
        options: of ``PipelineModule`` (topology, loss function, seeds).
    """
    from deepspeed.pipe import PipelineModule

    class Cut(PipelineModule):
        def _partition_layers(self, method: str = "") -> None:
            self.parts = list(bounds)
            stage = self._topo.get_coord(self.global_rank).pipe
            self._set_bounds(start=bounds[stage], stop=bounds[stage + 1])

    return Cut(specs, **options)


def quiet_cpu_collectives() -> None:
    """Keep DeepSpeed from building its shared-memory collectives, which training never uses.

    They need a compiler, take half a minute, and crash where LOCAL_SIZE is not the world size.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
