"""Adapters of peft beside sparse layers, which stay as they are."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from warnings import catch_warnings, filterwarnings

from smet.errors import ConfigError
from smet.linear import SparseLinear

BESIDE = ("gaussian", "eva", "orthogonal")
"""Beginnings of adapters, by peft's names, that leave the weight alone beside which they stand."""


def beside_sparse(config: Any) -> Any:
    """Let a ``LoraConfig`` of peft put adapters beside sparse layers, as it does beside dense ones. Returns it.

    peft does not save this with adapters; who loads them says it again:
    ``PeftModel.from_pretrained(model, folder, config=beside_sparse(PeftConfig.from_pretrained(folder)))``.

    Args:
        config: a ``peft.LoraConfig``.

    Raises:
        ConfigError: it is something else, or begins by taking something out of the base's weight (PiSSA and others),
            which a sparse layer cannot give, or has "all-linear" as its ``target_modules``.
    """
    start = getattr(config, "init_lora_weights", None)
    if not hasattr(config, "_register_custom_module"):
        raise ConfigError(f"beside_sparse was given a {type(config).__name__}, expected a peft.LoraConfig")
    if isinstance(start, str) and start not in BESIDE:
        raise ConfigError(
            f"init_lora_weights is '{start}', expected true, false, or one of {', '.join(BESIDE)}: others may write"
            " into the base's weight, and a sparse layer's is computed; or make the model dense first:"
            " smet.hf.dense(model)"
        )
    if config.target_modules == "all-linear":  # as peft counts, a sparse layer is none
        raise ConfigError(
            "target_modules is 'all-linear', with which peft passes over sparse layers, expected names of layers or a"
            " pattern, such as ['q_proj', 'down_proj']"
        )
    lora: Any = import_module("peft.tuners.lora")  # who has a configuration has it; nothing else here needs it

    class SparseLora(lora.Linear):
        """An adapter whose base is a sparse layer."""

        def __init__(self, *arguments: Any, **options: Any):
            with catch_warnings():
                filterwarnings("ignore", "Unsupported layer type")  # peft says so of every class that is not its own
                super().__init__(*arguments, **options)

        def merge(self, *arguments: Any, **options: Any) -> None:
            """Add the adapter to the base's weight, once that is dense.

            Raises:
                ConfigError: it is not.
            """
            if isinstance(self.get_base_layer(), SparseLinear):
                raise ConfigError(
                    "an adapter is to be merged into a sparse layer, which has no place for it, expected a dense one:"
                    " call smet.hf.dense(model) before merge"
                )
            super().merge(*arguments, **options)

    config._register_custom_module({SparseLinear: SparseLora})
    return config
