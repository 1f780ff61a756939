"""What was measured to be poor is said at a run's start, and nothing where it is not so."""

from __future__ import annotations

import pytest

from pretrain.advice import poor
from pretrain.config import config_from_dict


def said(**changes: object) -> list[str]:
    sparsity = {"density": 0.25, **{key: value for key, value in changes.items() if "." not in key}}
    content = {
        "model": {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "max_position_embeddings": 16},
        "sparsity": sparsity, "data": {"train": "corpus", "seq_length": 16},
        "train": {"steps": 10, "global_batch_size": 1, "micro_batch_size": 1, "output_dir": "run"},
        "optimizer": {"lr": 1e-3},
    }  # fmt: skip
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if key:
            content.setdefault(section, {})[key] = value
    return poor(config_from_dict(content))


def test_naive_updates_with_a_long_memory():
    (line,) = said(method="set", **{"optimizer.beta2": 0.999})
    assert line.startswith("advice: ") and "0.999" in line and "results-spikes.md" in line


@pytest.mark.parametrize(
    "changes",
    [{"method": "set", "optimizer.beta2": 0.95}, {"method": "smet"}, {"method": "static"},
     {"method": "gmp"}, {"method": "set", "update_interval": 0}, {"method": "set", "optimizer.name": "lion"}],
)  # fmt: skip
def test_nothing_where_it_is_not_so(changes: dict[str, object]):
    assert said(**{"optimizer.beta2": 0.999, "lr_exponent": 0.0, **changes}) == []
