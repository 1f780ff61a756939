"""Who loads a sparse model for transformers: ``AutoModel...from_pretrained`` finds it by ``quant_method``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from smet.candidates import LINEAR, class_path, parameter_of, shape_of
from smet.config import SmetConfig
from smet.errors import ConfigError
from smet.experts import SUFFIX, DenseExpert, SparseExpert, restack, stack_of, stackable, stacks_in, take_back, unstack
from smet.hf.config import SparseConfig, adopt
from smet.hf.plain import dense
from smet.linear import SparseLinear
from smet.settings import remember
from smet.sparse_file import AS_DENSE, METHOD, VALUES, Held, StoredLayer, layers_in, made, settings_in, stored_layer


class Incoming(nn.Module):
    """What the files hold of one sparse layer, in its place until transformers has read all of it.

    Args:
        layer: that of the model, which has no values yet.
        stored: what the files have instead.
    """

    def __init__(self, layer: nn.Module, stored: StoredLayer):
        super().__init__()
        self.stored = stored
        self.kind = SparseExpert if isinstance(layer, DenseExpert) else SparseLinear
        self.carried: dict[str, Any] = {key: vars(layer)[key] for key in ("nf", "nx") if key in vars(layer)}
        self.out_features, self.in_features = shape_of(layer)  # by which some models say how it would be initialised
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        for key, held in stored.entries.items():
            if key == VALUES:
                self.values = nn.Parameter(torch.empty(held.shape, dtype=parameter_of(layer).dtype, device="meta"))
            else:
                self.register_buffer(key, torch.empty(held.shape, dtype=_DTYPES[held.dtype], device="meta"))

    def made(self) -> SparseLinear:
        """The layer, once everything is read.

        Raises:
            ConfigError: mask and values do not fit each other.
        """
        tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in self.named_parameters()}
        layer = made(self.stored, {**tensors, **dict(self.named_buffers())}, self.kind)
        layer.bias = self._parameters["bias"]
        vars(layer).update(self.carried)  # what a Conv1D calls its sides: by them it becomes one again
        return layer.train(self.training)


_DTYPES = {"U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool}


@register_quantizer(METHOD)
class SparseQuantizer(HfQuantizer):
    """Puts sparse layers into a model that transformers builds, and leaves it as one that needs no quantizer."""

    quantization_config: SparseConfig
    settings: SmetConfig | None = None

    def validate_environment(self, *arguments: Any, **options: Any) -> None:
        """Refuse a dense model, and settings that are none.

        Raises:
            ConfigError: it is one, or one of them is.
        """
        if not self.pre_quantized:
            raise ConfigError(
                "the model is dense, so SparseConfig cannot load it, expected one with sparse layers; load it without"
                " quantization_config, then make it sparse: smet.sparsify(model, density=0.25)"
            )
        self.settings = settings_in(self.quantization_config.settings)

    def is_serializable(self) -> bool:
        """Its layers' state dicts are what files hold."""
        return True

    @property
    def is_trainable(self) -> bool:
        """It is."""
        return True

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **others: Any
    ) -> None:
        if not checkpoint_files:
            raise ConfigError("a sparse model was given without its files, expected a folder or a name on the hub")
        _require_inside(checkpoint_files, str(model.config.name_or_path))
        with ExitStack() as stack:
            files = {name: stack.enter_context(_open(name)) for name in checkpoint_files}
            held = {name: held for file, opened in files.items() for name, held in _headers(file, opened)}
            for module in list(model.modules()):
                for key in stackable(module):
                    unstack(module, stack_of(module, key))
            modules = dict(model.named_modules())
            for name, place in _places(model, layers_in(held)).items():
                layer = modules.get(place)
                if layer is None or class_path(layer) not in LINEAR:
                    if f"{name}.{VALUES}" in held and f"{name}.block" in held:
                        raise _homeless(name, held, model)
                    continue  # a tensor that the model happens to call so
                has_bias = layer.bias is not None
                stored = stored_layer(name, held, _reader(files, held), shape_of(layer), has_bias)
                parent, _, child = place.rpartition(".")
                setattr(model.get_submodule(parent), child, Incoming(layer, stored))
        _await_experts(model)

    def _process_model_after_weight_loading(self, model: Any, **others: Any) -> None:
        devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
        if len(devices) > 1:
            raise ConfigError(
                f"device_map spreads the sparse model over {', '.join(sorted(devices))}, expected one device, such as"
                " device_map='cuda:0'"
            )
        settings, as_dense = self.settings, getattr(model.config, AS_DENSE, False)
        if not isinstance(as_dense, bool):
            raise ConfigError(f"dense is {as_dense!r:.40}, expected True for plain layers, or False for sparse ones")
        for name, incoming in [pair for pair in model.named_modules() if isinstance(pair[1], Incoming)]:
            layer = incoming.made()
            if settings is not None:
                layer.compute, layer.keep_dense = settings.compute, settings.weight_residency == "dense"
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        for module in model.modules():
            take_back(module)
        model.is_quantized = False
        if as_dense:
            dense(model)
        elif settings is None:
            adopt(model)
        else:
            remember(model, settings)


def _await_experts(model: nn.Module) -> None:
    """Let the files' dense experts be parameters again, and code that would initialise the sparse ones find none to."""
    restack(model)
    for name, module in model.named_modules():
        for stack in stacks_in(module):
            if missing := [number for number, expert in stack.named_children() if isinstance(expert, DenseExpert)]:
                raise ConfigError(
                    f"the files have sparse layers of {name}.{stack.of}{SUFFIX}, and none of expert {missing[0]},"
                    " expected all of them; the sparse model is damaged"
                )
            vars(module)[stack.of] = nothing = torch.empty(0)
            nothing._is_hf_initialized = True  # type: ignore[attr-defined]


def _open(file: str) -> Any:
    if not file.endswith(".safetensors"):
        raise ConfigError(f"{file!r:.200} cannot hold a sparse model, expected .safetensors files")
    try:
        return safetensors.safe_open(file, framework="np")  # torch is told to make tensors on "meta" meanwhile
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{file} is damaged: {error}") from None


def _headers(file: str, opened: Any) -> Iterable[tuple[str, Held]]:
    names: list[str] = opened.keys()
    for name in names:
        part = opened.get_slice(name)
        yield name, Held(file, part.get_dtype(), tuple(part.get_shape()))


def _reader(files: Mapping[str, Any], held: Mapping[str, Held]) -> Callable[[str], Any]:
    return lambda name: files[held[name].file].get_tensor(name)


def _require_inside(files: Iterable[str], folder: str) -> None:
    """Refuse an index that names files elsewhere."""
    if not os.path.isdir(folder):
        return  # a name on the hub, whose files lie in its cache
    root = Path(folder).resolve()
    for file in files:
        if not Path(file).parent.resolve().is_relative_to(root):
            raise ConfigError(f"{folder}: its index names {file!r:.200}, expected .safetensors files in the folder")


def _places(model: Any, layers: Iterable[str]) -> dict[str, str]:
    """What the model calls each of the files' ``layers``: transformers renames some, and heads have a prefix."""
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    state = model.state_dict()
    found = {}
    for name in sorted(layers):
        place, _ = rename_source_key(f"{name}.weight", renamings, converters, model.base_model_prefix, state)
        found[name] = place.removesuffix(".weight")
    return found


def _homeless(name: str, held: Mapping[str, Held], model: Any) -> ConfigError:
    file = held[f"{name}.{VALUES}"].file
    return ConfigError(
        f"{file}: the sparse layer {name!r:.120} has no place in a {type(model).__name__} of its config.json, expected"
        " one of its linear layers"
    )
