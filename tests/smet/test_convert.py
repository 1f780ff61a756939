"""sparsify on torch and transformers models: what is chosen, how it starts, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from smet import ConfigError, SmetConfig, SparseLinear, densify, parameter_groups, sparse_layers, sparsify
from smet.convert import Piece
from smet.mask import count_active, unpack

ALL_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def llama(attention_bias: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=attention_bias,
            tie_word_embeddings=False,
        )  # fmt: skip
    )


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(seed))


def test_a_transformers_llama_trains_sparse_with_its_embeddings_norms_and_head_dense() -> None:
    model = sparsify(llama(), SmetConfig(density=0.25)).model
    layers = sparse_layers(model)
    assert {name.rpartition(".")[2] for name in layers} == ALL_LAYERS
    assert len(layers) == 14
    assert isinstance(model.lm_head, nn.Linear)
    for layer in layers.values():
        assert layer.active == round(0.25 * layer.grid.tiles) == count_active(layer.packed_mask())
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("block", [(1, 1), (1, 16), (4, 4)])
def test_a_sparse_model_is_the_dense_model_with_zeros(block: tuple[int, int]) -> None:
    """Values are the dense ones at the active places: transposed layers, blocks and biases included."""
    turned = {f"model.layers.{n}.{name}" for n in range(2) for name in ("self_attn.o_proj", "mlp.down_proj")}
    dense = llama(attention_bias=True)
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.3)
    config, piece = SmetConfig(density=0.5, block=block, fan_in_init=False), Piece(transposed=turned)
    sparse = sparsify(copy.deepcopy(dense), config, piece=piece).model
    for name, layer in sparse_layers(sparse).items():
        assert layer.transposed == (name in turned)
        original = dense.get_submodule(name)
        weight = layer.dense_weight()
        assert torch.equal(weight[weight != 0], original.weight[weight != 0])
        assert int((weight != 0).sum()) == layer.active * block[0] * block[1]
        original.weight.data.copy_(weight)
    torch.testing.assert_close(sparse(tokens()).logits, dense(tokens()).logits, rtol=1e-5, atol=1e-5)


def test_densify_gives_back_a_plain_layer_with_the_same_function() -> None:
    model = sparsify(llama(attention_bias=True), SmetConfig(density=0.3, block=(2, 2))).model
    expected = model(tokens()).logits
    for name, layer in sparse_layers(model).items():
        parent, _, child = name.rpartition(".")
        plain = densify(layer)
        assert type(plain) is nn.Linear
        setattr(model.get_submodule(parent), child, plain)
    assert not sparse_layers(model)
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-6, atol=1e-6)


def test_densify_keeps_16_bit_weights_and_shares_nothing() -> None:
    layer = sparsify(nn.Sequential(nn.Linear(8, 8)).bfloat16(), SmetConfig(density=1.0)).model[0]
    plain = densify(layer)
    assert plain.weight.dtype == plain.bias.dtype == torch.bfloat16
    plain.weight.data.zero_()
    assert layer.values.abs().sum() > 0


def test_name_filters() -> None:
    names = set(sparse_layers(sparsify(llama(), SmetConfig(include=("*mlp*",), exclude=("*down_proj",))).model))
    assert names == {f"model.layers.{index}.mlp.{kind}_proj" for index in (0, 1) for kind in ("gate", "up")}
    with_head = sparse_layers(sparsify(llama(), SmetConfig(exclude=())).model)
    assert "lm_head" in with_head


def test_effective_fan_in_initialisation_and_its_switch() -> None:
    base = llama()
    scaled = sparse_layers(sparsify(copy.deepcopy(base), SmetConfig(density=0.25)).model)
    plain = sparse_layers(sparsify(copy.deepcopy(base), SmetConfig(density=0.25, fan_in_init=False)).model)
    for name, layer in scaled.items():
        torch.testing.assert_close(layer.values, plain[name].values * 2.0)


def test_magnitude_masks_keep_the_largest_weights_unscaled() -> None:
    dense = llama()
    sparse = sparsify(copy.deepcopy(dense), SmetConfig(density=0.25), initial="magnitude").model
    for name, layer in sparse_layers(sparse).items():
        weight, original = layer.dense_weight(), dense.get_submodule(name).weight
        assert original[weight != 0].abs().min() >= original[weight == 0].abs().max()
        assert torch.equal(weight[weight != 0], original[weight != 0])


def test_a_dense_source_supplies_the_weights() -> None:
    config = SmetConfig(density=0.5, fan_in_init=False)
    model = sparsify(
        llama(), config, dense_source=lambda name, layer: torch.full((layer.out_features, layer.in_features), 3.0)
    ).model
    assert all((layer.values == 3).all() for layer in sparse_layers(model).values())


def test_masks_depend_on_seed_and_name_alone() -> None:
    first, again = (sparse_layers(sparsify(llama(), SmetConfig()).model) for _ in range(2))
    other = sparse_layers(sparsify(llama(), SmetConfig(seed=1)).model)
    bits = {name: layer.packed_mask() for name, layer in first.items()}
    assert all(torch.equal(bits[name], layer.packed_mask()) for name, layer in again.items())
    assert not any(torch.equal(bits[name], layer.packed_mask()) for name, layer in other.items())
    assert not torch.equal(bits["model.layers.0.mlp.up_proj"], bits["model.layers.1.mlp.up_proj"])


def test_erk_spends_the_same_total_and_makes_groups_of_its_own_rates() -> None:
    config = SmetConfig(density=0.25, distribution="erk")
    model = sparsify(llama(), config).model
    layers = list(sparse_layers(model).values())
    active, size = sum(layer.active for layer in layers), sum(layer.grid.tiles for layer in layers)
    assert abs(active - 0.25 * size) <= len(layers) / 2
    assert len({layer.active / layer.grid.tiles for layer in layers}) > 2
    for group in parameter_groups(model, config):
        if group["name"].startswith("sparse"):
            (density,) = {
                layer.configured_density for layer in layers if any(layer.values is p for p in group["params"])
            }
            assert group["lr_factor"] == pytest.approx(density**-0.5)


def test_groups_hold_every_trainable_parameter_once_and_decay_matrices_only() -> None:
    config = SmetConfig(density=0.25, lr_exponent=1.0)
    model = sparsify(llama(attention_bias=True), config).model
    model.model.layers[0].mlp.up_proj.values.requires_grad_(False)
    groups = {group["name"]: group for group in parameter_groups(model, config, weight_decay=0.1)}
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert set(groups) == {"dense", "vectors", "sparse-0.25"}
    assert groups["dense"]["weight_decay"] == groups["sparse-0.25"]["weight_decay"] == 0.1
    assert groups["vectors"]["weight_decay"] == 0.0
    assert all(p.dim() == 1 for p in groups["vectors"]["params"])
    assert groups["sparse-0.25"]["lr_factor"] == 4.0
    assert groups["sparse-0.25"]["aged"] is True
    assert "aged" not in groups["dense"]


def test_static_layers_carry_no_ages() -> None:
    config = SmetConfig.preset("static", density=0.25)
    groups = parameter_groups(sparsify(llama(), config).model, config)
    assert not any(group.get("aged") for group in groups)


def test_frozen_layers_stay_frozen_with_their_bias() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    sparsify(model, SmetConfig(density=0.5))
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


def test_a_model_survives_deepcopy_and_a_plain_state_dict() -> None:
    config = SmetConfig(density=0.3, block=(2, 4))
    model = sparsify(llama(), config).model
    twin = copy.deepcopy(model)
    fresh = sparsify(llama(), SmetConfig(density=0.3, block=(2, 4), seed=9)).model
    assert not torch.equal(fresh(tokens()).logits, model(tokens()).logits)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(twin(tokens()).logits, model(tokens()).logits)
    assert torch.equal(fresh(tokens()).logits, model(tokens()).logits)


def test_a_dtype_change_leaves_masks_alone() -> None:
    model = sparsify(llama(), SmetConfig(density=0.3)).model
    before = {name: layer.packed_mask().clone() for name, layer in sparse_layers(model).items()}
    model.bfloat16()
    for name, layer in sparse_layers(model).items():
        assert layer.packed_mask().dtype == torch.uint8
        assert torch.equal(layer.packed_mask(), before[name])
        assert layer.values.dtype == torch.bfloat16
    model(input_ids=tokens(), labels=tokens()).loss.backward()


def test_the_smallest_density_keeps_one_block() -> None:
    (layer,) = sparse_layers(
        sparsify(nn.Sequential(nn.Linear(8, 4)), SmetConfig(density=1e-4, block=(2, 2), balance="never")).model
    ).values()
    assert layer.active == 1
    assert int(unpack(layer.packed_mask(), layer.grid.tiles).sum()) == 1


def test_torchs_own_attention_still_works() -> None:
    """Its output layer is a subclass of nn.Linear whose weight is read directly, so it stays as it is."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    sparsify(layer, SmetConfig(density=0.5, exclude=()))
    assert set(sparse_layers(layer)) == {"linear1", "linear2"}
    layer(torch.randn(2, 5, 16)).sum().backward()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, r"density is 0.0, expected a fraction in \(0, 1\]"),
        ({"density": 1.5}, r"density is 1.5, expected a fraction in \(0, 1\]"),
        ({"density": float("nan")}, r"density is nan"),
        ({"block": (1, 7)}, r"model.layers.0.self_attn.q_proj: block is 1 x 7, which does not divide a 48 x 48"),
        ({"block": (0, 1)}, r"block is \[0, 1\], expected two positive sizes"),
        ({"include": ("*qproj*",)}, r"include \['\*qproj\*'\] minus exclude .* selects no linear layer"),
        ({"growth": "gradients"}, r"growth is 'gradients', expected one of random, gradient.*did you mean 'gradient'"),
        ({"prune_start": 1.2}, r"prune_start is 1.2"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_and_changes_nothing(settings: dict, message: str) -> None:
    model = llama()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ConfigError, match=message) as caught:
        sparsify(model, SmetConfig(**settings))
    assert "\n" not in str(caught.value)
    assert {name: type(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("shards", [2, 4])
def test_tensor_parallel_shards_are_pieces_of_the_whole_model(shards: int, distribution: str) -> None:
    """Masks and values of the shards, one after the other, are those of the whole layer in canonical order."""
    config = SmetConfig(density=0.3, block=(1, 4), distribution=distribution)
    weights = {"up_proj": torch.randn(64, 32), "down_proj": torch.randn(32, 64)}

    def build(shard: int, count: int, densities: dict[str, float] | None) -> dict[str, SparseLinear]:
        model = nn.ModuleDict(
            {"up_proj": nn.Linear(32, 64 // count, bias=False), "down_proj": nn.Linear(64 // count, 32, bias=False)}
        )
        own = {
            "up_proj": weights["up_proj"].chunk(count, 0)[shard],
            "down_proj": weights["down_proj"].chunk(count, 1)[shard],
        }
        piece = Piece(shard, count, densities, transposed=("down_proj",))
        return sparse_layers(sparsify(model, config, dense_source=lambda name, layer: own[name], piece=piece).model)

    whole = build(0, 1, None)
    densities = {name: layer.configured_density for name, layer in whole.items()}
    parts = [build(shard, shards, densities) for shard in range(shards)]
    for name, layer in whole.items():
        masks = [unpack(part[name].packed_mask(), part[name].grid.tiles) for part in parts]
        assert torch.equal(torch.cat(masks), unpack(layer.packed_mask(), layer.grid.tiles))
        assert torch.equal(torch.cat([part[name].values for part in parts]), layer.values)
        merged = torch.cat([part[name].dense_weight() for part in parts], dim=1 if layer.transposed else 0)
        assert torch.equal(merged, layer.dense_weight())


def test_magnitude_masks_of_a_shard_are_refused() -> None:
    """The largest weights of a whole layer cannot be told from a part of it."""
    with pytest.raises(ConfigError, match="magnitude"):
        sparsify(llama(), SmetConfig(), initial="magnitude", piece=Piece(0, 2, {}))


def test_a_block_is_checked_in_the_canonical_orientation() -> None:
    """down_proj is 80 -> 48 and transposed: its canonical matrix is 80 x 48, so 16 x 1 fits and 1 x 80 does not."""
    down = SmetConfig(include=("*0.mlp.down_proj",), balance="never")
    piece = Piece(transposed=("model.layers.0.mlp.down_proj",))
    down.block = (80, 1)
    assert isinstance(sparsify(llama(), down, piece=piece).model.model.layers[0].mlp.down_proj, SparseLinear)
    down.block = (1, 80)
    with pytest.raises(ConfigError, match="1 x 80, which does not divide a 80 x 48"):
        sparsify(llama(), down, piece=piece)


def test_a_lone_linear_layer_is_refused_since_it_cannot_be_replaced_in_place() -> None:
    with pytest.raises(ConfigError, match=r"is itself a linear layer.*nn\.Sequential"):
        sparsify(nn.Linear(4, 4), SmetConfig())


def test_a_layer_that_is_used_in_two_places_stays_shared() -> None:
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    sparsify(model, SmetConfig(density=0.5))
    assert isinstance(model["a"], SparseLinear)
    assert model["a"] is model["b"][0]


def test_a_weight_that_another_module_shares_stays_dense_and_is_named() -> None:
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    report = sparsify(model, SmetConfig(exclude=("*embed*",)))
    assert "lm_head" not in report.layers
    assert "1 layer of class Linear (0 weights), shares its weight with model.embed_tokens: lm_head" in str(report)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_planned_layer_that_turns_out_to_share_its_weight_is_refused() -> None:
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    planned = Piece(densities={name: 0.5 for name, _ in model.named_modules()})
    with pytest.raises(ConfigError, match="lm_head shares its weight with model.embed_tokens.*add it to exclude"):
        sparsify(model, SmetConfig(exclude=()), piece=planned)
