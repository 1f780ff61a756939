"""Every YAML in configs/ is a valid run, and its model is as large as its name says."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import torch
import yaml

from pretrain.__main__ import main
from pretrain.config import load_config
from pretrain.errors import ConfigError
from pretrain.models import inventory_of
from pretrain.models.llama.config import LlamaConfig
from pretrain.models.llama.model import LlamaForCausalLM
from smet.config import TILES_PRUNE_START
from smet.kernels.sides import GPU_FEWEST_TOKENS, worth_it_on_gpu
from smet.notices import still_notices
from smet.patterns import selects

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
SIZES = {
    "9m": 9e6,
    "60m": 60e6,
    "130m": 130e6,
    "350m": 350e6,
    "1b": 1.34e9,  # what GaLore and its successors call 1B
    "3b": 3.4e9,  # what OpenLLaMA calls 3B
    "7b": 6.7e9,
    "13b": 13e9,
    "70b": 69e9,
    "quickstart": 2e6,
}


def parameters(config: LlamaConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())


def test_every_size_has_a_model_and_a_run() -> None:
    assert {path.stem for path in RUNS} == SIZES.keys()
    assert {path.stem for path in (CONFIGS / "models").glob("*.yaml")} == SIZES.keys() - {"quickstart"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run(path: Path) -> None:
    config = load_config(path)
    assert parameters(config.model) == pytest.approx(SIZES[path.stem], rel=0.15)
    assert config.sparsity.density == 0.25 and config.sparsity.dynamic
    assert config.train.output_dir == f"runs/{path.stem}"
    assert config.optimizer.warmup_steps < config.train.steps
    for ranks in (1, 2) if path.stem == "quickstart" else (1, 2, 4, 8):
        assert config.accumulation(ranks) >= 1


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml")))
def test_a_preset_goes_on_top_of_every_run(name: str, tmp_path: Path) -> None:
    preset = yaml.safe_load((CONFIGS / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
    for run in RUNS:
        (tmp_path / "run.yaml").write_text(f"base: [{run.resolve()}, {CONFIGS.resolve()}/presets/{name}.yaml]\n")
        config = load_config(tmp_path / "run.yaml")
        for section, keys in preset.items():
            assert {key: getattr(getattr(config, section), key) for key in keys} == keys, run


TILED = sorted((CONFIGS / "tiles").glob("*.yaml"))
DEGREES = (1, 2, 4, 8)


def test_every_size_has_a_run_in_tiles() -> None:
    assert {path.stem for path in TILED} == SIZES.keys() - {"quickstart"}


def degrees_of(path: Path) -> list[int]:
    """The tensor degrees at which a run file is valid; checked to be those that it names."""
    (line,) = re.findall(r"^# Tensor degrees: (.*)\.$", path.read_text(encoding="utf-8"), re.MULTILINE)
    serves = []
    for degree in DEGREES:
        with contextlib.suppress(ConfigError):
            load_config(path, [f"parallel.tensor={degree}", "parallel.sequence=false"])
            serves.append(degree)
    assert [int(word) for word in re.findall(r"\d+", line)] == serves
    return serves


def test_the_quickstart_trains_in_tiles_of_which_each_layer_moves_some() -> None:
    path = CONFIGS / "quickstart.yaml"
    sparsity = load_config(path).sparsity
    assert degrees_of(path) == [1] and sparsity.topology_ranges == 1
    assert sparsity.is_balanced(sparsity.block) and sparsity.is_permuted
    weights = {name: rows * cols for name, (rows, cols) in inventory_of(load_config(path).model).linears()
               if selects(name, sparsity)}  # fmt: skip
    size = sparsity.block[0] * sparsity.block[1]
    active = {name: int(sparsity.density * count) // size for name, count in weights.items()}
    assert len(active) == 28 and still_notices(active, sparsity, load_config(path).train.steps) == []


@pytest.mark.parametrize("path", TILED, ids=lambda path: path.stem)
def test_tiles_divide_at_the_tensor_degrees_that_the_file_names(path: Path) -> None:
    """And at no others; the run is that of the same size otherwise."""
    serves = degrees_of(path)
    own, base = load_config(path).to_dict(), load_config(CONFIGS / path.name).to_dict()
    block, permute = own["sparsity"].pop("block"), own["sparsity"].pop("permute")
    assert permute == ("both" if min(block) >= 32 else "inputs")
    faster = worth_it_on_gpu(block, own["sparsity"]["density"], GPU_FEWEST_TOKENS)
    assert faster != ("(on GPUs whole matrices are faster)" in path.read_text(encoding="utf-8"))
    assert own["sparsity"].pop("topology_ranges") == max(serves), "features are permuted within what a rank has"
    assert min(block) >= 16 and own["train"].pop("output_dir") == f"runs/{path.stem}-tiles"
    assert own["sparsity"].pop("prune_start") == TILES_PRUNE_START < base["sparsity"].pop("prune_start")
    for key in ("block", "permute", "topology_ranges"):
        del base["sparsity"][key]
    del base["train"]["output_dir"]
    assert own == base


@pytest.mark.parametrize("size", ["9m", "60m", "130m", "350m", "1b", "3b", "7b"])  # 13b and 70b take long to build
def test_runs_in_tiles_build(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CONFIGS / "tiles" / f"{size}.yaml"), "--dry-run", "--json"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "smet-rigl"])
def test_every_method_is_one_override_away(method: str) -> None:
    config = load_config(CONFIGS / "quickstart.yaml", [f"sparsity.method={method}"])
    assert config.sparsity.method == method
    assert (config.sparsity.density == 1.0) == (method == "dense")


@pytest.mark.parametrize("path", sorted((CONFIGS / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_model_file_holds_a_model_and_nothing_else(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8")).keys() == {"model"}
    run = load_config(CONFIGS / path.name)
    assert run.model.vocab_size == 32000


@pytest.mark.parametrize("size", ["350m", "1b", "3b", "7b", "13b", "70b"])
def test_shapes_divide_among_eight_tensor_parallel_ranks_in_blocks_of_eight(size: str) -> None:
    overrides = ["parallel.tensor=8", "sparsity.block=[1, 8]"]
    assert load_config(CONFIGS / f"{size}.yaml", overrides).parallel.tensor == 8
