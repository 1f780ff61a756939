"""Experts of transformers become sparse, each matrix for itself, and whatever multiplies by them is none the wiser."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import smet
import smet.hf
from smet import ConfigError, sparse_layers
from smet.experts import SparseExpert
from smet.mask import count_active

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("Mixtral", {"intermediate_size": 24, "num_local_experts": 4}),
    "Qwen3Moe": ("Qwen3Moe", {"intermediate_size": 24, "moe_intermediate_size": 24, "num_experts": 4}),
    "GptOss": ("GptOss", {"intermediate_size": 24, "num_local_experts": 4, "layer_types": ["full_attention"]}),
}
"""The last one stores its matrices as ``(experts, in, out)``, with biases."""
PROJECTIONS = ("gate_up_proj", "down_proj")
FIXED = {"fan_in_init": False, "lr_exponent": 0.0, "quiet": True}


def build(family: str = "Mixtral", way: str | None = None, seed: int = 1) -> Any:
    name, sizes = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(hf, f"{name}Config")(**SIZES, **sizes, experts_implementation=way)
    return getattr(hf, f"{name}ForCausalLM")(config).eval()


def experts_of(model: Any) -> Any:
    return model.model.layers[0].mlp.experts


def tokens(seed: int = 2) -> Tensor:
    return torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(seed))


def loss_of(model: Any, ids: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_losses_and_gradients_are_those_of_the_dense_model(family: str, way: str) -> None:
    dense, model = build(family, way), build(family, way)
    report = smet.sparsify(model, density=0.5, **FIXED)
    names = [name for name in report.layers if "experts" in name]
    assert len(names) == 8 and names[0] == "model.layers.0.mlp.experts.gate_up_proj_stack.0"
    dense.load_state_dict(smet.hf.dense(copy.deepcopy(model)).state_dict())
    ids = tokens()[:1, :3]  # of so few tokens that some expert gets none
    losses = [loss_of(one, ids) for one in (dense, model)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    unused = 0
    for projection in PROJECTIONS:
        whole = getattr(experts_of(dense), projection).grad
        for number in range(4):
            layer = report.layers[f"model.layers.0.mlp.experts.{projection}_stack.{number}"]
            gradient = whole[number].t() if family == "GptOss" else whole[number]
            assert layer.values.grad is not None
            torch.testing.assert_close(layer.values.grad, layer.compress_gradient(gradient.contiguous()))
            unused += not bool(gradient.any())
    assert unused >= 2 * (4 - len(used(dense, ids))) > 0
    assert not hasattr(experts_of(model), "gate_up_proj"), "what was lent is taken back"
    with torch.no_grad():
        assert torch.equal(loss_of(model, ids), losses[1])


def used(model: Any, ids: Tensor) -> set[int]:
    """Experts that tokens are sent to."""
    seen: list[Tensor] = []
    handle = experts_of(model).register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    model(ids)
    handle.remove()
    return set(torch.cat(seen).view(-1).tolist())


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        loss = loss_of(model, tokens(step % 4)[:, :4])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_density_one_is_dense_adamw_also_for_experts_without_tokens() -> None:
    dense, model = build(), build()
    smet.sparsify(model, density=1.0, quiet=True)
    assert all(layer.is_full for layer in sparse_layers(model).values())
    matrices = [p for p in dense.parameters() if p.dim() > 1]
    vectors = [p for p in dense.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    expected = train(dense, torch.optim.AdamW(groups, lr=1e-2), 8)
    optimizer = smet.AdamW(model, lr=1e-2, weight_decay=0.1)
    smet.attach(optimizer, total_steps=8)
    assert train(model, optimizer, 8) == pytest.approx(expected, abs=2e-5)
    again = smet.hf.dense(model)
    for projection in PROJECTIONS:
        ours, theirs = (getattr(experts_of(one), projection) for one in (again, dense))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"method": "smet"}, {"method": "rigl"}, {"prune": "saliency"}])
def test_each_expert_keeps_its_density_through_updates_and_its_ages_count_on(settings: dict[str, Any]) -> None:
    model = build()
    smet.sparsify(model, density=0.3, update_interval=2, stop_fraction=1.0, quiet=True, **settings)
    layers = {name: layer for name, layer in sparse_layers(model).items() if isinstance(layer, SparseExpert)}
    assert len(layers) == 8
    before = {name: layer.packed_mask().clone() for name, layer in layers.items()}
    optimizer = smet.AdamW(model, lr=1e-2)
    run = smet.attach(optimizer, total_steps=8)
    losses = train(model, optimizer, 8)
    assert run.updates_done == 4 and losses[-4:] < losses[:4]
    for name, layer in layers.items():
        assert count_active(layer.packed_mask()) == round(0.3 * layer.grid.tiles), name
        assert not torch.equal(layer.packed_mask(), before[name]), name
        fragment = run.topology.store.fragment(layer.values)
        assert len(fragment.state["birth"].unique()) > 1, "what was grown is younger"
        assert bool(fragment.state["exp_avg"].any())


def test_saved_and_loaded_they_are_as_they_were(tmp_path: Any) -> None:
    model = build("GptOss")
    smet.sparsify(model, density=0.5, exclude=("*lm_head*", "*down_proj*"), quiet=True)
    made = build("GptOss", seed=3)
    smet.sparsify(made, density=0.5, exclude=("*lm_head*", "*down_proj*"), quiet=True, seed=4)
    made.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path)
    found, told = hf.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    assert isinstance(experts_of(found).down_proj, nn.Parameter), "excluded, it is a parameter in the file too"
    assert isinstance(sparse_layers(found)["model.layers.0.mlp.experts.gate_up_proj_stack.3"], SparseExpert)
    expected = loss_of(model, tokens())
    for one in (made, found, smet.hf.dense(found)):
        assert torch.equal(loss_of(one, tokens()), expected)


def test_a_file_without_one_of_the_experts_is_damaged(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    model = build()
    smet.sparsify(model, density=0.5, quiet=True).model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in held.items() if "down_proj_stack.2." not in k}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="down_proj_stack, and none of expert 2, expected all of them"):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_copies_averages_and_pickles_compute_alike() -> None:
    model = build()
    smet.sparsify(model, density=0.5, quiet=True)
    expected = loss_of(model, tokens())
    averaged = smet.ModelAverage(model, decay=0.5).model(model)
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), averaged):
        assert torch.equal(loss_of(one, tokens()), expected)
    stack = experts_of(averaged).gate_up_proj_stack
    for number, layer in list(stack.named_children()):
        setattr(stack, number, smet.densify(layer))
    assert torch.equal(loss_of(averaged, tokens()), expected)


@pytest.mark.parametrize("way", ["eager", "grouped_mm"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dense_weights_live_only_while_their_layer_computes(way: str, checkpointing: bool) -> None:
    model = build(way=way)
    smet.sparsify(model, density=0.5, quiet=True)
    expected = torch.autograd.grad(loss_of(model, tokens()), [p for p in model.parameters()])
    if checkpointing:
        model.train().gradient_checkpointing_enable()
    lent = []
    experts_of(model).register_forward_pre_hook(
        lambda module, _: lent.extend(weakref.ref(vars(module)[name]) for name in PROJECTIONS)
    )
    loss = loss_of(model, tokens())
    assert len(lent) == 2 and not any(reference() is not None for reference in lent)
    found = torch.autograd.grad(loss, [p for p in model.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_weights_that_were_changed_before_backward_are_not_taken_for_those_that_computed() -> None:
    model = build()
    layer = smet.sparsify(model, density=0.5, quiet=True).layers["model.layers.0.mlp.experts.down_proj_stack.1"]
    loss = loss_of(model, tokens())
    with torch.no_grad():
        layer.values.mul_(2)
    with pytest.raises(RuntimeError, match="weights of down_proj, needed for the gradient, were changed since"):
        loss.backward()


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model = build()
    smet.sparsify(model, density=0.5, quiet=True)
    experts = experts_of(model)
    with pytest.raises(AttributeError):
        experts(None, None, None)
    assert not {*PROJECTIONS} & vars(experts).keys()


def test_what_is_left_dense_is_named_by_its_parameter() -> None:
    report = smet.sparsify(build(), density=0.5, exclude=("*lm_head*", "*experts.down_proj"), quiet=True)
    (left,) = [one for one in report.left_dense if "experts" in one.name]
    assert (left.name, left.kind, left.weights) == (
        "model.layers.0.mlp.experts.down_proj",
        "MixtralExperts",
        4 * 16 * 24,
    )
    assert left.reason == "excluded by '*experts.down_proj'"
    again = smet.sparsify(report, density=0.25, quiet=True)
    assert len(again.layers) == 4 and experts_of(report.model).down_proj_stack, "a second call adds them"
    matrices = sum(p.numel() for p in build().parameters() if p.dim() > 1)
    assert again.weights == matrices == again.sparse_weights + sum(one.weights for one in again.left_dense)


@pytest.mark.parametrize("what", ["hook", "spread", "patched", "integers"])
def test_experts_that_cannot_become_sparse_say_why(what: str) -> None:
    model = build()
    experts = experts_of(model)
    if what == "hook":
        experts.down_proj.register_hook(lambda grad: grad)
    elif what == "spread":
        experts._is_expert_parallel = True
    elif what == "patched":
        experts.forward = lambda *arguments: arguments[0]
    else:
        experts.down_proj = nn.Parameter(experts.down_proj.detach().to(torch.float8_e4m3fn))
    report = smet.sparsify(model, density=0.5, quiet=True)
    (reason, *_) = {one.reason for one in report.left_dense if one.name.endswith("experts.down_proj")}
    reasons = {"hook": "gradient hooks", "spread": "over ranks", "patched": "replaced", "integers": "is float8_e4m3fn"}
    assert reasons[what] in reason
    assert isinstance(experts.down_proj, nn.Parameter)


def test_first_masks_may_ask_the_dense_model_where_every_expert_is_asked() -> None:
    model, few, many = build(), tokens()[:1, :3], torch.arange(3, 63).view(2, 30)
    with pytest.raises(
        ConfigError, match=r"nothing to go by in layer .*gate_up_proj_stack.\d: the loss does not depend"
    ):
        smet.sparsify(model, density=0.5, mask_init="snip", loss=lambda one: loss_of(one, few), quiet=True)
    assert isinstance(experts_of(model).down_proj, nn.Parameter) and not experts_of(model)._forward_pre_hooks
    smet.sparsify(model, density=0.5, mask_init="snip", loss=lambda one: loss_of(one, many), quiet=True)
    weights = {name: layer.weight for name, layer in sparse_layers(model).items()}
    for name, parameter in build().named_parameters():
        if "experts" in name:
            for number, matrix in enumerate(parameter):
                weight = weights[f"{name}_stack.{number}"]
                assert torch.equal(weight, matrix * (weight != 0)) and int((weight != 0).sum()) == matrix.numel() // 2


def test_a_model_of_which_experts_alone_are_sparse_measures_no_products() -> None:
    model = build()
    report = smet.sparsify(model, density=0.5, include=("*experts*",), quiet=True)
    assert len(report.layers) == 8
    run = smet.attach(smet.AdamW(model), total_steps=4, tokens=16)
    assert all(layer.decided is None for layer in report.layers.values())
    run.detach()


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Dynamo")
def test_a_compiled_model_computes_alike_and_nobody_traces_into_what_is_lent() -> None:
    model = build()
    smet.sparsify(model, density=0.5, quiet=True)
    expected = loss_of(model, tokens())
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    found = loss_of(torch.compile(model, backend="eager"), tokens())
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
