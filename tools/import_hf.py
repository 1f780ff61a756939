"""Make a checkpoint of a LLaMA in Hugging Face's format, sparse by magnitude, or dense at --density 1.

MODEL is a folder with config.json and safetensors files, or a model's name on the Hugging Face hub. OUT gets a
checkpoint of step 0 (fresh optimizer state), model.yaml (the model and sparsity sections to base a run file on)
and the model's tokenizer. Start from it with

    smet train YOUR_RUN.yaml checkpoint.resume=OUT/step-00000000

where YOUR_RUN.yaml says `base: OUT/model.yaml`. One process, no GPU, and no more than one layer in memory.
With --family, the model is one of that family, in its own files.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.folder import step_folder
from pretrain.checkpoint.permutation import permutation_digest
from pretrain.command import told
from pretrain.config.yaml_text import to_yaml
from pretrain.errors import ConfigError
from pretrain.files import write_synced
from pretrain.models import DEFAULT, family, inventory_of
from pretrain.models.family import FamilyConfig
from pretrain.numbers import finite
from pretrain.paths import path_argument, path_text
from pretrain.screen import on_screen
from smet import SmetConfig
from smet.balance import chosen
from smet.config import CHOICES, PRESETS
from smet.mask import pack, unpack
from smet.optim.ages import AgeTable
from smet.permutation import unfit
from smet.spec import LayerSpec
from smet.starved import unbalanced
from smet.topology import magnitude_mask, tile_scores

from .checkpoints.cli import Report, add_family, make_parser, run_tool
from .checkpoints.hf_config import read_config
from .checkpoints.layers import SavedWeight, orders_in, weights_of
from .checkpoints.leftovers import Dropping, folded
from .checkpoints.place import new_folder, require_free
from .checkpoints.source import local_folder, tokenizer_in
from .checkpoints.sparse_source import weights_in
from .checkpoints.writer import LazyVector, Vectors, require_space, write_checkpoint, zeros


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("import_hf", __doc__)
    parser.add_argument("model", type=path_text, metavar="MODEL", help="folder, or name on the Hugging Face hub")
    parser.add_argument("out", type=path_argument, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--density", type=finite, required=True, metavar="D", help="fraction of tiles that stay active; 1 = dense"
    )
    parser.add_argument(
        "--block", type=int, nargs=2, default=(1, 1), metavar=("R", "C"), help="rows and columns of a tile (1 1)"
    )
    parser.add_argument(
        "--distribution", choices=CHOICES["distribution"], default="uniform", help="of density over layers (uniform)"
    )
    parser.add_argument(
        "--balance",
        choices=CHOICES["balance"],
        default="auto",
        help="of rows and columns of tiles: see sparsity.balance",
    )
    parser.add_argument(
        "--permute", choices=CHOICES["permute"], default="none", help="features of tiles: see sparsity.permute (none)"
    )
    parser.add_argument(
        "--ranges",
        type=int,
        default=1,
        metavar="N",
        help="sparsity.topology_ranges, for tensor parallelism (1)",
    )
    parser.add_argument("--method", choices=tuple(PRESETS), help="default: smet, or dense at --density 1")
    parser.add_argument("--revision", help="of a model on the hub: branch, tag or commit")
    parser.add_argument(
        "--drop", action="append", default=[], metavar="NAME",
        help="leave out a tensor, file or key of config.json that the model built here has no place for, such as "
        "'*.bias'; repeatable. Without it such a model is refused",
    )  # fmt: skip
    add_family(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier import")
    return parser


def import_model(options: argparse.Namespace) -> Report:
    """Do what the command line says.

    Raises:
        UserError: MODEL is none that can be built here, the settings do not fit it, or OUT is taken.
    """
    require_free(options.out, options.overwrite)
    sparsity = _sparsity(options)
    source = local_folder(options.model, options.revision)
    dropping = Dropping(options.drop)
    name = options.family or DEFAULT
    kind = family(name)
    model = read_config(source, kind, name, dropping)
    dense = weights_in(source, kind, dropping)
    dense.require_depth(inventory_of(model).shape.layers)
    weights = weights_of(model, sparsity)
    dense.require(weights, model)
    specs = {weight.layer.name: weight.layer for weight in weights if weight.layer is not None}
    sizes = {name: (spec.grid.rows, spec.grid.cols) for name, spec in specs.items() if spec.selected}
    densities = {name: spec.density for name, spec in specs.items()}
    if wrong := unfit(sizes, sparsity, 1) or unbalanced(sizes, densities, sparsity):
        raise ConfigError(wrong)
    dropping.require_used()
    origin = {
        "tool": "tools.import_hf",
        "model": options.model,
        "density": sparsity.first_density,
        "block": list(sparsity.block),
        "parameters": sum(weight.numel for weight in weights),
        "parameters_stored": sum(weight.stored for weight in weights),
        "dropped": sorted(set(dropping.dropped)),
    }
    vectors = vectors_of(weights, sparsity, dense.tensor)
    with new_folder(options.out, origin) as folder:
        require_space(folder, vectors)
        tokenizer, passed_over = _copy_tokenizer(source, folder)
        sections = _sections(model, sparsity, options.out / tokenizer if tokenizer else None)
        write_synced(folder / "model.yaml", _run_file(sections, options))
        write_checkpoint(folder, vectors, _state(sections, origin), permutation_digest(model, sparsity))
    checkpoint = step_folder(options.out, 0)
    return {
        **origin,
        "out": str(options.out),
        "checkpoint": str(checkpoint),
        "tokenizer": tokenizer,
        "passed_over": passed_over,
    }


def _sparsity(options: argparse.Namespace) -> SmetConfig:
    method = options.method or ("dense" if options.density == 1.0 else "smet")
    if method == "dense" and options.density != 1.0:
        raise ConfigError(f"--method is dense with --density {options.density}, expected density 1 or another method")
    return SmetConfig.preset(
        method, density=options.density, block=tuple(options.block), distribution=options.distribution,
        balance=options.balance, permute=options.permute, topology_ranges=options.ranges,
    ).check()  # fmt: skip


def vectors_of(weights: Sequence[SavedWeight], sparsity: SmetConfig, dense: Callable[[str], Tensor]) -> Vectors:
    """What a run that starts from these weights would save before its first step.

    Args:
        dense: gives a weight by its name, in fp32.
    """
    vectors: Vectors = {}
    for weight in weights:
        spec = weight.layer
        if spec is None:
            vectors[weight.vector] = LazyVector(weight.numel, torch.float32, _flat(dense, weight.name))
        else:
            layer = _SparseLayer(weight.name, spec, dense, sparsity)
            vectors[weight.vector] = LazyVector(weight.stored, torch.float32, layer.values)
            if not spec.is_full:
                vectors[spec.mask] = LazyVector(weight.mask_bytes, torch.uint8, layer.bits)
            if spec.aged:
                vectors[f"{weight.vector}/birth"] = zeros(weight.stored, torch.uint8)
        for moment in ("exp_avg", "exp_avg_sq"):
            vectors[f"{weight.vector}/{moment}"] = zeros(weight.stored)
    return vectors


def _flat(dense: Callable[[str], Tensor], name: str) -> Callable[[], Tensor]:
    return lambda: dense(name).reshape(-1)


class _SparseLayer:
    """The tiles of largest L1 norm of one layer; read once for the two vectors that come of it."""

    def __init__(self, name: str, spec: LayerSpec, dense: Callable[[str], Tensor], sparsity: SmetConfig):
        self.name, self.spec, self.dense, self.sparsity = name, spec, dense, sparsity
        self._bits: Tensor | None = None

    def values(self) -> Tensor:
        """Kept weights, tile by tile; keeps the mask for ``bits``."""
        weight, grid = orders_in(self.spec, self.sparsity).stored(self.dense(self.name)), self.spec.grid
        tiles = grid.to_tiles(weight.t() if self.spec.transposed else weight)
        if self.spec.is_full:
            return tiles.reshape(-1)
        scores = tile_scores(tiles.reshape(-1), grid.tile_size)
        if self.sparsity.is_balanced(grid.tile):
            self._bits = pack(chosen(scores, *grid.shape, self.spec.active, self.sparsity.topology_ranges))
        else:
            self._bits = magnitude_mask(scores, self.spec.active)
        return tiles[unpack(self._bits, grid.tiles)].reshape(-1)

    def bits(self) -> Tensor:
        """The packed mask; then forgets it."""
        if self._bits is None:
            self.values()
        bits, self._bits = self._bits, None
        assert bits is not None
        return bits


def _copy_tokenizer(source: Path, folder: Path) -> tuple[str | None, list[str]]:
    """Copy the model's tokenizer; returns its file name, or None where it has none, and what was passed over."""
    name, passed = tokenizer_in(source)
    if name is not None:
        shutil.copyfile(source / name, folder / name)
    return name, passed


def _sections(model: FamilyConfig, sparsity: SmetConfig, tokenizer: Path | None) -> dict[str, Any]:
    """Sections of a run's settings, as far as an imported model decides them."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(sparsity).items()}
    sections: dict[str, Any] = {"model": dataclasses.asdict(model), "sparsity": plain}
    if tokenizer is not None:
        sections["data"] = {"tokenizer": str(tokenizer)}
    return sections


def _run_file(sections: dict[str, Any], options: argparse.Namespace) -> str:
    """``model.yaml``: the sections, without what the method's preset says anyway."""
    sparsity = sections["sparsity"]
    preset = vars(SmetConfig.preset(sparsity["method"], block=tuple(sparsity["block"]), balance=sparsity["balance"]))
    kept = ("method", "density", "block", "distribution")
    preset = {**preset, "balance": "auto"}
    brief = {key: value for key, value in sparsity.items() if key in kept or value != _plain(preset[key])}
    text = to_yaml({**sections, "sparsity": brief})
    return (
        f"# {options.model}, imported by tools.import_hf: what a run file that starts from it says of the model.\n"
        "# Use it as `base:` of a run file with data, optimizer and train sections, and start that once with\n"
        f"# checkpoint.resume={step_folder(options.out, 0)}\n{text}"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _state(sections: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """The small state of a run before its first step; neither data nor a probe batch belong to it yet."""
    ages = AgeTable().state_dict()  # no births yet
    return {
        "step": 0,
        "consumed_samples": 0,
        "topology": {"steps_done": 0, "updates_done": 0, "last_code": 0, "ages": ages},
        "callbacks": {},
        "passed_over": [],
        "data_fingerprint": None,
        "probe": None,
        "torch_rng": torch.Generator().manual_seed(0).get_state().numpy().tobytes().hex(),
        "config": sections,
        "origin": origin,
    }


def describe(report: Report) -> str:
    """The report for a person."""
    tokenizer = f", its {report['tokenizer']}" if report["tokenizer"] else ", no tokenizer"
    start = told("train", "YOUR_RUN.yaml", f"checkpoint.resume={report['checkpoint']}")
    notes = [*report["passed_over"]]
    if report["dropped"]:
        notes.insert(0, f"dropped, as asked: {folded(report['dropped'])}")
    return "".join(f"note: {note}\n" for note in notes) + (
        f"{report['out']}: {report['parameters_stored']:,} of {report['parameters']:,} parameters kept{tokenizer}\n"
        f"write a run file with `base: {report['out']}/model.yaml` (relative to that file), and start it with\n"
        f"  {start}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_tool(build_parser().parse_args(argv), import_model, describe)


if __name__ == "__main__":
    sys.exit(on_screen(main))
