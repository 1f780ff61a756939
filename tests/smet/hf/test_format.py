"""Sparse transformers models in files: saved and loaded they are what they were, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import smet
import smet.hf
from smet.errors import ConfigError
from smet.hf.config import SparseConfig
from tests.smet.test_transformers_models import MODELS, build
from tests.tools.checkpoints.models import make_hf

PROJECTION = "model.layers.1.mlp.down_proj"
AUTO = transformers.AutoModelForCausalLM


def llama(folder: Path, **settings: Any) -> Any:
    """A LLaMA with sparse layers, whose weights are no initial ones; in ``folder`` lies its dense original."""
    model = make_hf(folder, num_key_value_heads=3)
    settings = {"density": 0.25, "update_interval": 2, "stop_fraction": 1.0, "prune_start": 0.3, **settings}
    return smet.sparsify(model, quiet=True, **settings).model


def logits(model: Any) -> Tensor:
    tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: Tensor = model.eval()(tokens).logits
    return found


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse LLaMA with permuted features and tall tiles: its layers have every kind of tensor."""
    folder = tmp_path_factory.mktemp("saved")
    llama(folder / "dense", block=(3, 2), permute="both", exclude=("*lm_head*", "*k_proj")).save_pretrained(
        folder / "it"
    )
    return folder / "it"


@pytest.mark.parametrize("changes", [{}, {"block": (4, 2)}, {"block": (3, 2), "permute": "both"}, {"density": 1.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded_as_it_was(tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = llama(tmp_path / "dense", **changes).to(dtype)
    model.save_pretrained(tmp_path / "a", max_shard_size="10KB")
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1
    assert (tmp_path / "a" / "generation_config.json").is_file()
    found, told = AUTO.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    assert same(state(model), state(found)) and found.dtype == dtype
    if dtype == torch.float32:  # `to` rounds rotary frequencies too
        assert torch.equal(logits(model), logits(found))
    layers, ours = smet.sparse_layers(found), smet.sparse_layers(model)
    assert len(layers) == 14
    for name, layer in layers.items():
        assert (layer.density, layer.configured_density) == (ours[name].density, ours[name].configured_density)
        assert layer.orders.digest() == ours[name].orders.digest() and layer.values.requires_grad
    if "permute" in changes:  # what is moved for one is moved for all that read it
        attention = found.model.layers[0].self_attn
        assert attention.q_proj.orders.inputs is attention.k_proj.orders.inputs is not None
    assert smet.settings.settings_of(found) == smet.settings.settings_of(model)
    found.save_pretrained(tmp_path / "b")
    assert same(state(model), state(AUTO.from_pretrained(tmp_path / "b")))
    assert found.float().half().dtype == torch.float16, "transformers refuses that of what it takes for quantised"


@pytest.mark.parametrize("name", MODELS)
def test_other_models_made_dense_come_back_equal(tmp_path: Path, name: str) -> None:
    plain = build(name)
    layers = smet.sparsify(plain, density=0.5, quiet=True).layers
    smet.hf.dense(plain)
    assert not smet.sparse_layers(plain)
    plain.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(plain).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert same(state(plain), state(again))
    for place, layer in layers.items():
        parent, _, last = place.rpartition("_stack.")
        theirs = again.get_parameter(parent)[int(last)] if parent else again.get_submodule(place).weight
        turned = not parent and type(again.get_submodule(place)).__name__ == "Conv1D"
        assert torch.equal(theirs.t() if turned else theirs, layer.weight)


@pytest.mark.parametrize(
    ("tile", "dtype", "most"), [(1, "float32", 0.29), (1, "bfloat16", 0.32), (16, "bfloat16", 0.26)]
)
def test_files_of_sparse_layers_are_small(tmp_path: Path, tile: int, dtype: str, most: float) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 1, "num_attention_heads": 8}
    model = make_hf(tmp_path / "dense", getattr(torch, dtype), num_key_value_heads=8, **shape)
    smet.sparsify(model, density=0.25, block=(tile, tile), quiet=True)
    model.save_pretrained(tmp_path / "sparse")
    others = 2 * 97 * 512 * model.dtype.itemsize
    sparse, dense = ((tmp_path / name / "model.safetensors").stat().st_size - others for name in ("sparse", "dense"))
    assert sparse / dense < most
    assert sparse / dense > 0.25


def test_a_loaded_model_trains_on(saved: Path) -> None:
    losses = []
    for _ in range(2):
        model = AUTO.from_pretrained(saved).train()
        before = state(model)
        optimizer = smet.AdamW(model, lr=1e-2)
        run = smet.attach(optimizer, total_steps=6)
        tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(1))
        for _ in range(6):
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert run.updates_done == 3 and not torch.equal(
            before[f"{PROJECTION}.mask"], state(model)[f"{PROJECTION}.mask"]
        )
        losses.append(loss.item())
    assert losses[0] == losses[1] < 4.0


def test_the_plain_model_trains_on_as_a_sparse_one_again(saved: Path) -> None:
    plain = smet.hf.load_dense(saved)
    told = AUTO.from_pretrained(saved, dense=True)
    assert same(state(plain), state(told)) and type(told.get_submodule(PROJECTION)) is nn.Linear
    assert told.config.to_dict() == plain.config.to_dict() and not hasattr(told.config, "dense")
    assert not smet.sparse_layers(transformers.AutoModel.from_pretrained(saved, dense=True))
    with pytest.raises(ConfigError, match="dense is 'yes', expected True for plain layers"):
        AUTO.from_pretrained(saved, dense="yes")
    expected = logits(AUTO.from_pretrained(saved))
    assert type(plain.get_submodule(PROJECTION)) is nn.Linear and not hasattr(plain.config, "quantization_config")
    torch.testing.assert_close(logits(plain), expected)
    smet.sparsify(
        plain, density=0.25, mask_init="magnitude", fan_in_init=False, exclude=("*lm_head*", "*k_proj"), quiet=True
    )
    torch.testing.assert_close(logits(plain), expected)
    assert plain.config.quantization_config.settings["mask_init"] == "magnitude"


WITHOUT = """
import sys
sys.modules["smet"] = None
import torch
from transformers import AutoModelForCausalLM
sparse, plain, out = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(sparse)
except RuntimeError as error:
    print("refused")
model = AutoModelForCausalLM.from_pretrained(plain).eval()
tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(1))
torch.save(model(tokens).logits.detach(), out)
"""


def test_without_smet_the_plain_model_computes_and_the_sparse_one_is_refused(saved: Path, tmp_path: Path) -> None:
    plain = smet.hf.load_dense(saved)
    plain.save_pretrained(tmp_path / "plain")
    command = [sys.executable, "-c", WITHOUT, str(saved), str(tmp_path / "plain"), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "refused\n", done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(plain))


def test_a_state_of_files_goes_into_a_model_made_alike(saved: Path, tmp_path: Path) -> None:
    """As a Trainer that resumes loads it."""
    made = llama(tmp_path, block=(3, 2), permute="both", exclude=("*lm_head*", "*k_proj"), seed=0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    missing, unexpected = made.load_state_dict(load_file(saved / "model.safetensors"), strict=False)
    assert not missing and not unexpected
    assert torch.equal(logits(made), logits(AUTO.from_pretrained(saved)))


def drop(key: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda held: held.pop(f"{PROJECTION}.{key}")


def put(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    name = f"{PROJECTION}.{key}"
    return lambda held: held.update({name: change(held[name]).contiguous()})


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no mask": (drop("mask"), "mask is missing beside values, "),
    "no values": (drop("values"), "values is missing beside mask, "),
    "no tile": (drop("block"), "block is missing"),
    "no orientation": (drop("transposed"), "transposed is missing"),
    "no shape": (drop("weight"), "weight is missing"),
    "no digest": (drop("permutation"), "permutation is missing"),
    "a bit more": (put("mask", lambda m: torch.cat([m[:1] ^ 1, m[1:]])), "active tiles, expected"),
    "a short mask": (put("mask", lambda m: m[:-1]), "mask is U8 [17], expected U8 [18]"),
    "a wide mask": (put("mask", lambda m: m.int()), "mask is I32 [18], expected U8 [18]"),
    "fewer values": (put("values", lambda v: v[:-6]), "has 36 active tiles, expected 35 by the values"),
    "half a tile": (put("values", lambda v: v[:-1]), "values is F32 [215], expected at most 864 numbers, 6 for each"),
    "too many values": (put("values", lambda v: v.repeat(5)), "values is F32 [1080], expected at most 864"),
    "square values": (put("values", lambda v: v.view(12, -1)), "values is F32 [12, 18]"),
    "whole values": (put("values", lambda v: v.int()), "values is I32 [216]"),
    "another shape": (put("weight", lambda w: w.flip(0)), "weight says a shape of [36, 24], expected [24, 36]"),
    "a tile of nothing": (put("block", lambda b: b * 0), "says tiles of 0 x 0, expected sides that divide 24 x 36"),
    "a negative tile": (put("block", lambda b: -b), "block says tiles of -3 x -2"),
    "a tile that does not fit": (put("block", lambda b: b.flip(0) + 3), "block says tiles of 5 x 6"),
    "an order twice": (put("inputs", lambda i: i.clamp(1)), "inputs is no permutation, expected each of 0 to 35 once"),
    "an order beyond": (put("outputs", lambda o: o + 1), "outputs is no permutation"),
    "another order": (put("outputs", lambda o: o.flip(0)), "permutation is "),
    "a short order": (put("inputs", lambda i: i[:-1]), "inputs is I32 [35], expected I32 [36]"),
    "a bias": (lambda held: held.update({f"{PROJECTION}.bias": torch.zeros(24)}), "has a bias, expected none"),
    "a layer elsewhere": (
        lambda held: held.update({f"x.{k}": held[f"{PROJECTION}.{k}"].clone() for k in ("values", "block")}),
        "the sparse layer 'x' has no place in a LlamaForCausalLM",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_tensors_are_refused_in_one_line(saved: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    damage, told = DAMAGES[what]
    held = load_file(tmp_path / "model.safetensors")
    damage(held)
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError) as error:
        AUTO.from_pretrained(tmp_path)
    text = str(error.value)
    assert told in text and text.startswith(f"{tmp_path / 'model.safetensors'}: ") and "\n" not in text


def test_spare_bits_are_refused(tmp_path: Path) -> None:
    model = make_hf(tmp_path, num_attention_heads=1, hidden_size=10, intermediate_size=15)
    smet.sparsify(model, density=0.25, quiet=True).model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    mask = held[f"{PROJECTION}.mask"]
    lowest = int(mask[0]) & -int(mask[0])
    mask[0] ^= lowest  # as many bits as before
    mask[-1] |= 0x80
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ConfigError, match="active tiles of which some are beyond the 150 tiles, expected 38 by the values"
    ):
        AUTO.from_pretrained(tmp_path)


def test_another_description_is_refused_in_one_line(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())

    def load(**changes: Any) -> Any:
        changed = {**config, "quantization_config": {**config["quantization_config"], **changes}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        return AUTO.from_pretrained(tmp_path)

    for changes, told in (
        ({"version": 2}, "has version 2, expected 1"),
        ({"version": True}, "has version True, expected 1"),
        ({"bits": 4}, "has the unknown key 'bits'"),
        ({"settings": [1]}, "settings is '[1]', expected an object or null"),
        ({"settings": {"density": 2.0}}, "density is 2.0, expected a fraction"),
        (
            {"settings": {"density": "much", "block": 3}},
            "density is 'much' (str), expected a finite number; block is 3",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            load(**changes)
        assert told in str(error.value) and "\n" not in str(error.value)
    for settings, told in (
        ({"prune": "os:getcwd"}, "have 'prune' of own code, and are left out"),
        ({"speed": 3}, "have 'speed', which this version does not know, and are left out"),
        (None, ""),
    ):
        caplog.clear()
        model = load(settings=settings)
        assert told in caplog.text
        assert smet.sparse_layers(model) and model.config.quantization_config.settings is None
        with pytest.raises(ConfigError, match="remembers no settings"):
            smet.AdamW(model, lr=1e-3)


def test_files_elsewhere_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "it")
    (tmp_path / "it" / "model.safetensors").rename(tmp_path / "model.safetensors")
    names = load_file(tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../model.safetensors")}
    (tmp_path / "it" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="its index names '.*/../model.safetensors', expected .safetensors files in"):
        AUTO.from_pretrained(tmp_path / "it")
    with pytest.raises(ConfigError, match="was given without its files"):
        transformers.LlamaForCausalLM.from_pretrained(None, config=AUTO.from_pretrained(saved).config, state_dict=names)
    (tmp_path / "it" / "model.safetensors.index.json").unlink()
    shutil.copy(saved / "model.safetensors", tmp_path / "it")
    with open(tmp_path / "it" / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ConfigError, match="model.safetensors is damaged"):
        AUTO.from_pretrained(tmp_path / "it")


def test_a_dense_model_is_not_loaded_as_a_sparse_one(tmp_path: Path) -> None:
    make_hf(tmp_path)
    with pytest.raises(ConfigError, match="the model is dense, so SparseConfig cannot load it"):
        AUTO.from_pretrained(tmp_path, quantization_config=SparseConfig())


def test_a_base_model_takes_the_layers_below_the_head(saved: Path) -> None:
    base = transformers.AutoModel.from_pretrained(saved)
    whole = AUTO.from_pretrained(saved)
    assert same(state(base), state(whole.model))


def test_a_model_that_was_sparse_before_the_import_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smet.settings, "TOLD", [])
    model = llama(tmp_path / "dense")
    model.save_pretrained(tmp_path / "unknown")
    with pytest.raises(RuntimeError):  # and no random weights
        AUTO.from_pretrained(tmp_path / "unknown")
    smet.hf.adopt(model).save_pretrained(tmp_path / "known")
    assert same(state(AUTO.from_pretrained(tmp_path / "known")), state(model))
