"""What cannot become sparse is left alone and named; what can keeps everything that was attached to it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from smet import ConfigError, SmetConfig, SparseLinear, densify, sparse_layers, sparsify

HALF = SmetConfig(density=0.5)


class Subclass(nn.Linear):
    """A linear layer that may compute something else."""


def weight_with_hook(layer: nn.Linear) -> nn.Linear:
    layer.weight.register_hook(lambda grad: grad * 2)
    return layer


def replaced_forward(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return layer


def state_hook(layer: nn.Linear) -> nn.Linear:
    layer.register_load_state_dict_post_hook(lambda module, keys: None)
    return layer


ODD: dict[str, tuple[Callable[[nn.Linear], nn.Module], str]] = {
    "subclass": (lambda _: Subclass(8, 8), r"1 layer of class Subclass \(64 weights\), a subclass of nn.Linear may"),
    "lazy": (lambda _: nn.LazyLinear(8), r"class LazyLinear \(0 weights\), not initialised yet"),
    "weight norm": (parametrizations.weight_norm, "computed by a parametrization: remove that first: odd"),
    "spectral norm": (parametrizations.spectral_norm, "computed by a parametrization: remove that first: odd"),
    "old weight norm": (weight_norm, r"it holds weight_g, weight_v too \(prune, weight_norm\): remove that first: odd"),
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "it holds weight_orig, weight_mask too"),
    "compiled": (lambda layer: layer.compile() or layer, "its forward was replaced"),
    "patched": (replaced_forward, "its forward was replaced"),
    "hook on the weight": (weight_with_hook, "its weight has gradient hooks"),
    "state dict hook": (state_hook, "it has hooks on its state dict"),
    "float8": (lambda layer: layer.to(torch.float8_e4m3fn), "its weight is float8_e4m3fn"),
    "complex": (lambda layer: layer.to(torch.complex64), "its weight is complex64"),
    "bilinear": (lambda _: nn.Bilinear(4, 4, 4), "class Bilinear .*more than two dimensions"),
    "recurrent": (lambda _: nn.LSTM(8, 8), "1 layer of class LSTM .* no linear layer"),
    "attention": (lambda _: nn.MultiheadAttention(8, 2), "class NonDynamicallyQuantizableLinear .* with its weight"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_an_odd_layer_is_left_as_it_is_and_named(kind: str) -> None:
    make, line = ODD[kind]
    odd = make(nn.Linear(8, 8))
    model = nn.ModuleDict({"odd": odd, "plain": nn.Linear(8, 8)})
    report = sparsify(model, HALF)
    assert set(report.layers) == {"plain"}
    assert model["odd"] is odd
    (text,) = [text for text in str(report).splitlines() if "left dense" in text and "in_proj" not in text]
    assert re.search(line, text) and "odd" in text, text
    with pytest.raises(ConfigError, match="selects no linear layer of this model.*" + line) as caught:
        sparsify(nn.ModuleDict({"odd": odd}), HALF)
    assert "\n" not in str(caught.value)


def test_a_second_call_says_that_the_model_is_sparse_or_adds_what_its_patterns_add() -> None:
    model = nn.ModuleDict({"body": nn.Linear(8, 8), "lm_head": nn.Linear(8, 8)})
    sparsify(model, HALF)
    body = model["body"]
    with pytest.raises(ConfigError, match=r"already sparse.*excluded by '\*lm_head\*': lm_head"):
        sparsify(model, HALF)
    report = sparsify(model, SmetConfig(density=0.25, exclude=()))
    assert model["body"] is body and set(report.layers) == {"lm_head"}
    assert (report.share, report.weights, report.active_weights) == (1.0, 128, 32 + 16)
    with pytest.raises(ConfigError, match="already sparse, and of its other layers none can become so$"):
        sparsify(report, HALF)


def test_patterns_for_kinds_of_layers_do_not_look_at_their_parents() -> None:
    names = ("embedder.linear1", "normal.fc", "embed_out", "out_norm", "mlp.fc", "lm_head.dense")
    model = nn.Module()
    for name in names:
        parent, _, child = name.rpartition(".")
        if parent:
            model.add_module(parent, nn.Module())
        model.get_submodule(parent).add_module(child, nn.Linear(8, 8))
    assert set(sparsify(model, SmetConfig(exclude=("*embed*", "*norm*", "*lm_head*", "*mlp*"))).layers) == {
        "embedder.linear1",
        "normal.fc",
    }


def test_hooks_and_everything_else_that_is_attached_survive_the_swap_and_the_way_back() -> None:
    layer = nn.Linear(8, 8, dtype=torch.bfloat16).eval()
    layer.bias.requires_grad_(False)
    layer.role, bias, calls = "mine", layer.bias, []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: calls.append("before")),
        layer.register_forward_hook(lambda module, args, kwargs, out: calls.append("after"), with_kwargs=True),
        layer.register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward")),
    ]
    model = nn.Sequential(layer)
    sparsify(model, HALF)
    x = torch.randn(2, 8, dtype=torch.bfloat16, requires_grad=True)
    model(x).sum().backward()
    assert calls == ["before", "after", "backward"]
    assert model[0].bias is bias and model[0].role == "mine" and not model[0].training
    assert model[0].values.dtype == torch.bfloat16 and not bias.requires_grad
    plain = densify(model[0])
    plain(x).sum().backward()
    assert calls == ["before", "after", "backward"] * 2
    assert not plain.training and not plain.bias.requires_grad
    for handle in handles:
        handle.remove()
    model(x)
    assert len(calls) == 6, "the handles still remove the hooks"


def test_what_cannot_be_made_sparse_at_all_is_one_line() -> None:
    for model, settings, message in (
        ([nn.Linear(2, 2)], {}, "sparsify was given a list, expected a torch.nn.Module"),
        (nn.DataParallel(nn.Sequential(nn.Linear(8, 8))), {}, "wrapped in DataParallel already.*sparsify it before"),
        (nn.Sequential(nn.Linear(8, 8)), {"initial": "magnitud"}, "initial is 'magnitud'.*did you mean 'magnitude'"),
        (nn.Sequential(nn.Linear(8, 8, device="meta")), {}, r"0 have no values yet \(meta device\)"),
        (nn.Sequential(nn.ReLU()), {}, "selects no linear layer of this model.*it has no matrix weights"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            sparsify(model, HALF, **settings)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


PROGRAM = """
import torch, smet, logging, sys
if "logging" in sys.argv: logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Conv1d(8, 8, 3))
print(smet.sparsify(model, smet.SmetConfig(density=0.5), quiet="quiet" in sys.argv).share)
"""


@pytest.mark.parametrize(
    ("mode", "rank", "lines"),
    [("", "0", 3), ("", "1", 0), ("quiet", "0", 0), ("logging", "0", 3)],
)
def test_the_report_is_printed_once_per_job(mode: str, rank: str, lines: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True,
        env={**os.environ, "RANK": rank},
    )  # fmt: skip
    assert done.stdout == "0.25\n"
    said = [line for line in done.stderr.splitlines() if "smet: " in line]
    assert len(said) == lines, done.stderr
    if lines:
        assert said[0].endswith(
            "smet: 1 layer made sparse; 25% of the model's 256 matrix weights are in sparse layers, 32 of them active"
            " (density 0.5)"
        )
        assert "left dense: 1 layer of class Conv1d (192 weights)" in said[1]
        assert "warning: only 25% of the model's matrix weights are in sparse layers" in said[2]
        assert said[0].startswith("WARNING") == (mode == "logging")


def test_a_report_taken_for_the_model_says_where_the_model_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "smet"):
        report = sparsify(nn.Sequential(nn.Linear(8, 8)), HALF)
    assert str(report) in caplog.text
    with pytest.raises(AttributeError, match="no 'parameters'; the model that was made sparse is its .model"):
        report.parameters()
    assert isinstance(sparse_layers(report.model)["0"], SparseLinear)


def test_a_layer_without_elements_is_named_and_the_others_become_sparse() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 4), nn.Linear(4, 0))
    report = sparsify(model, HALF, quiet=True)
    assert list(report.layers) == ["1"] and report.share == 1.0
    assert [one.reason for one in report.left_dense] == [
        "its weight of shape [4, 0] has no elements", "its weight of shape [0, 4] has no elements",
    ]  # fmt: skip
    assert model(torch.ones(2, 0)).shape == (2, 0)
