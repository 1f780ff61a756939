"""What a sparse model's ``config.json`` says of it, and where live models get that from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from smet.errors import ConfigError
from smet.linear import sparse_layers
from smet.say import say
from smet.settings import TOLD, settings_of
from smet.sparse_file import AS_DENSE, METHOD, VERSION, description, require_known

TAGS = ["smet", "sparse"]
"""Of the model cards that transformers and its Trainer write."""


@register_quantization_config(METHOD)
class SparseConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a model with sparse layers.

    Nothing is quantised: transformers gives this place to whoever stores weights in a way of its own. A loaded model
    is one like any other, without a quantizer, and with sparse layers that can be trained.

    Args:
        version: of the format.
        settings: of sparse training, as ``smet.SmetConfig`` has them; None = unknown.

    Raises:
        ConfigError: it is of another version.
    """

    dequantize = True
    """What tells transformers that a loaded model is not quantised."""

    def __init__(self, version: Any = VERSION, settings: Mapping[str, Any] | None = None, **others: Any):
        given = {"quant_method": METHOD, "version": version, "settings": settings, **others}
        require_known(given)
        self.quant_method, self.version, self.settings = METHOD, version, settings

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict, which transformers takes it for where a live model's configuration is given to load one."""
        return self.to_dict().get(key, default)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {"quant_method": METHOD, "version": self.version, "settings": self.settings}


def adopt(model: nn.Module) -> nn.Module:
    """Let every transformers model in ``model`` that has sparse layers say so in its ``config.json``.

    Then ``save_pretrained``, whoever calls it, writes a folder that loads as it was. Models that are made sparse after
    ``import smet.hf`` are adopted by themselves. Returns ``model``.
    """
    try:
        settings = settings_of(model)
    except ConfigError:
        settings = None
    for part in outermost(model):
        if not sparse_layers(part):
            continue
        there = getattr(part.config, "quantization_config", None)
        if there is not None and _method(there) != METHOD:
            say(
                f"smet: note: the {type(part).__name__} is quantised too ({_method(there)}), so what save_pretrained"
                " writes of it has weights that cannot be loaded again",
                logging.WARNING,
            )
            continue
        part.config.quantization_config = SparseConfig.from_dict(description(settings))
        setattr(part.config, AS_DENSE, False)
        part.add_model_tags(TAGS)
    return model


def outermost(model: nn.Module) -> list[Any]:
    """The transformers models in ``model`` that are no parts of others."""
    found: dict[str, Any] = {}
    for name, part in model.named_modules():
        if isinstance(part, PreTrainedModel) and not any(
            name.startswith(f"{above}." if above else "") for above in found
        ):
            found[name] = part
    return list(found.values())


def _method(config: Any) -> str:
    given = config.get("quant_method") if isinstance(config, Mapping) else getattr(config, "quant_method", None)
    return str(getattr(given, "value", given))


TOLD.append(adopt)
