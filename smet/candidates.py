"""What of a model can become sparse, and for everything else one reason why it stays dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from smet.config import SmetConfig
from smet.experts import SUFFIX, ExpertStack, stack_of, stackable
from smet.linear import SparseLinear
from smet.patterns import unselected
from smet.zero import whole_shape

LINEAR = {
    "smet.experts.DenseExpert": False,
    "torch.nn.modules.linear.Linear": False,
    "transformers.models.falcon.modeling_falcon.FalconLinear": False,
    "transformers.pytorch_utils.Conv1D": True,
}
"""Classes that compute ``x W^T + b`` and nothing else, by their full names; the value says whether they are like
Conv1D, which stores W as ``(in, out)``. A subclass is not its base: it may compute something else, or its owner may."""

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LeftDense:
    """The matrix weights of one module that stay dense."""

    name: str
    """Module name; of a parametrized layer, the layer's; of experts, that of their parameter."""
    kind: str
    """Class of the module."""
    weights: int
    """Elements of its own parameters of two or more dimensions."""
    reason: str


@dataclass
class Survey:
    """Every module with matrix weights (parameters of two or more dimensions), each in one of three places."""

    layers: dict[str, nn.Module] = field(default_factory=dict)
    """Layers that can become sparse."""
    stacks: list[tuple[nn.Module, ExpertStack]] = field(default_factory=list)
    """Modules of experts whose matrices are layers among these, and what is to take their parameters' places."""
    sparse: dict[str, SparseLinear] = field(default_factory=dict)
    """Layers that are sparse already."""
    left: list[LeftDense] = field(default_factory=list)


def class_path(module: nn.Module) -> str:
    """Full name of the module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a layer whose class is in ``LINEAR``."""
    names = ("nf", "nx") if LINEAR[class_path(layer)] else ("out_features", "in_features")
    outputs, inputs = (int(getattr(layer, name)) for name in names)
    return outputs, inputs


def weight_of(layer: nn.Module) -> Tensor:
    """Dense weight ``(out, in)`` of a layer whose class is in ``LINEAR``."""
    weight = parameter_of(layer).detach()
    return weight.t() if is_stored_transposed(layer) else weight


def is_stored_transposed(layer: nn.Module) -> bool:
    """Whether a layer whose class is in ``LINEAR`` stores its weight as ``(in, out)``."""
    return LINEAR[class_path(layer)]


def parameter_of(layer: nn.Module) -> nn.Parameter:
    """The weight of a layer whose class is in ``LINEAR``, as it is stored."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight  # type: ignore[return-value]


def survey(model: nn.Module, config: SmetConfig) -> Survey:
    """Sort the modules of ``model`` that have matrix weights. A parameter counts where it is seen first."""
    found, seen = Survey(), set[int]()
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name, module in model.named_modules():
        experts = stackable(module)
        for key in experts:
            _survey_experts(found, name, module, key, config, owners, seen)
        matrices = {key: p for key, p in module.named_parameters(recurse=False) if _is_matrix(p)}
        own = [p for key, p in matrices.items() if key not in experts]
        if isinstance(module, SparseLinear):
            found.sparse[name] = module
        elif own:
            reason = _reason(name, module, own, config) or _shared(name, module, owners)
            if reason is None:
                found.layers[name] = module
            else:
                weights = sum(_elements(p) for p in own if id(p) not in seen)
                name = name.removesuffix(".parametrizations.weight")
                found.left.append(LeftDense(name, type(module).__name__, weights, reason))
            seen |= {id(p) for p in own}
    return found


def _survey_experts(
    found: Survey, name: str, module: nn.Module, key: str, config: SmetConfig, owners: dict[int, list[str]],
    seen: set[int],
) -> None:  # fmt: skip
    """Sort the matrices of all experts of ``module``, which are its parameter ``key``."""
    place, parameter = f"{name}.{key}".lstrip("."), module.get_parameter(key)
    others = [other for other in owners[id(parameter)] if other != name]
    reason = unselected(place, config) or (f"shares its weight with {others[0]}" if others else None)
    if getattr(module, "_is_expert_parallel", False):
        reason = reason or "its experts are spread over ranks: sparsify before that"
    shape = tuple(parameter.shape)
    checks = _is_patched(module), _has_state_hooks(module), _odd(parameter, shape), _hooked(parameter)
    reason = reason or next((why for why in checks if why is not None), None)
    if reason is None:
        stack = stack_of(module, key)
        found.stacks.append((module, stack))
        found.layers |= {f"{place}{SUFFIX}.{number}": expert for number, expert in stack.named_children()}
    else:
        weights = 0 if id(parameter) in seen else parameter.numel()
        found.left.append(LeftDense(place, type(module).__name__, weights, reason))
    seen.add(id(parameter))


def _is_matrix(parameter: Tensor) -> bool:
    return isinstance(parameter, UninitializedParameter) or len(whole_shape(parameter)) > 1


def _elements(parameter: Tensor) -> int:
    if isinstance(parameter, UninitializedParameter):
        return 0
    return whole_shape(parameter).numel()


def _reason(name: str, module: nn.Module, own: list[nn.Parameter], config: SmetConfig) -> str | None:
    """Why ``module`` cannot become sparse, or is not meant to."""
    if class_path(module) not in LINEAR:
        return _other_class(module, own)
    return unselected(name, config) or next((why for check in _OBSTACLES if (why := check(module)) is not None), None)


def _other_class(module: nn.Module, own: list[nn.Parameter]) -> str:
    if any(isinstance(p, UninitializedParameter) for p in own):
        return "not initialised yet: run a batch through the model first"
    if parametrize.is_parametrized(module) or isinstance(module, parametrize.ParametrizationList):
        return "its weight is computed by a parametrization: remove that first"
    if isinstance(module, nn.MultiheadAttention):
        return "torch's attention multiplies with in_proj_weight itself"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "torch's attention multiplies with its weight itself"
    if isinstance(module, nn.Linear):
        return "a subclass of nn.Linear may compute something else"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "a lookup table, no product"
    if any(p.dim() > 2 for p in own):
        return "weights of more than two dimensions (convolutions, fused experts): only linear layers become sparse"
    return "no linear layer"


def _holds_more(layer: nn.Module) -> str | None:
    """torch's older weight_norm, spectral_norm and prune compute ``weight`` from other parameters before each use."""
    more = [n for n, _ in (*layer.named_parameters(), *layer.named_buffers()) if n not in ("weight", "bias")]
    return f"it holds {', '.join(more)} too (prune, weight_norm): remove that first" if more else None


def _is_patched(layer: nn.Module) -> str | None:
    if "forward" in vars(layer) or vars(layer).get("_compiled_call_impl") is not None:
        return "its forward was replaced (accelerate, compile): sparsify before that"
    return None


def _weight_is_odd(layer: nn.Module) -> str | None:
    shape = shape_of(layer)
    return _odd(parameter_of(layer), shape[::-1] if is_stored_transposed(layer) else shape)


def _odd(weight: Tensor, shape: tuple[int, ...]) -> str | None:
    if type(weight) is not nn.Parameter or tuple(weight.shape) != shape:
        what = f"a {type(weight).__name__} of shape {list(weight.shape)}"
        return f"its weight is {what}, cut or wrapped by an engine: sparsify before that"
    if 0 in shape:
        return f"its weight of shape {list(weight.shape)} has no elements"
    if weight.dtype not in _FLOATS:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, no float of 16 to 64 bits"
    return None


def _has_tensor_hooks(layer: nn.Module) -> str | None:
    return _hooked(parameter_of(layer))


def _hooked(weight: Tensor) -> str | None:
    if getattr(weight, "_backward_hooks", None) or getattr(weight, "_post_accumulate_grad_hooks", None):
        return "its weight has gradient hooks, which would be lost"
    return None


def _has_state_hooks(layer: nn.Module) -> str | None:
    kinds = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
    return "it has hooks on its state dict" if any(vars(layer).get(kind) for kind in kinds) else None


_OBSTACLES: tuple[Callable[[nn.Module], str | None], ...] = (
    _holds_more,
    _is_patched,
    _weight_is_odd,
    _has_tensor_hooks,
    _has_state_hooks,
)


def _shared(name: str, module: nn.Module, owners: dict[int, list[str]]) -> str | None:
    others = [other for other in owners[id(parameter_of(module))] if other != name]
    return f"shares its weight with {others[0]}" if others else None
