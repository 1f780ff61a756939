"""Write a checkpoint as files that Hugging Face's LlamaForCausalLM loads, or those of its own family.

CHECKPOINT is a step folder, or a run or checkpoints folder (then its newest). It is verified first. OUT gets
the dense weights with exact zeros (model*.safetensors), config.json, the run's tokenizer, the packed masks
(masks.safetensors) and origin.json, which says where all this comes from. With --sparse, OUT gets active weights
and masks alone, a model card and generation_config.json; transformers loads it after `import smet.hf`. One process,
no GPU, and no more than one layer in memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pretrain.checkpoint.folder import free_bytes
from pretrain.errors import CheckpointError, DataError
from pretrain.files import write_synced
from pretrain.models import inventory_of
from pretrain.numbers import byte_size
from pretrain.paths import path_argument, path_text, why_no_file
from pretrain.precision import DTYPES
from pretrain.screen import on_screen
from smet.permutation import Order
from smet.sparse_file import AS_DENSE
from smet.spec import LayerSpec

from .checkpoints import sparse, stream
from .checkpoints.cli import Report, add_family, byte_count, make_parser, run_tool
from .checkpoints.place import new_folder, require_free
from .checkpoints.reader import Checkpoint
from .checkpoints.stream import Entry
from .checkpoints.tokenizer import export_tokenizer, not_of_the_data


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser("export_hf", __doc__)
    parser.add_argument("checkpoint", type=path_argument, metavar="CHECKPOINT", help="step, checkpoints or run folder")
    parser.add_argument("out", type=path_argument, metavar="OUT", help="folder to make")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the weights (default: fp32)")
    parser.add_argument(
        "--tokenizer",
        type=path_text,
        metavar="FILE",
        help="instead of the run's data.tokenizer; none = export without one",
    )
    parser.add_argument(
        "--max-shard-size", type=byte_size, default=5 * 10**9, metavar="SIZE", help="bytes per file (default: 5G)"
    )
    parser.add_argument(
        "--sparse", action="store_true", help="store sparse layers as active weights and masks (docs/sparse-format.md)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    add_family(parser)
    return parser


def export(options: argparse.Namespace) -> Report:
    """Do what the command line says.

    Raises:
        UserError: the checkpoint is damaged, OUT is taken, the disk too small, or the tokenizer does not fit.
    """
    require_free(options.out, options.overwrite)
    checkpoint = Checkpoint(options.checkpoint, options.family)
    tokenizer = _tokenizer(options.tokenizer, checkpoint)
    dtype = DTYPES[options.dtype]
    origin = _origin(checkpoint, options.dtype, options.sparse)
    with new_folder(options.out, origin) as folder:
        entries = sparse.entries(checkpoint, dtype) if options.sparse else _dense(checkpoint, dtype)
        _require_space(folder, sum(entry.nbytes for entry in entries))
        tokens = (
            export_tokenizer(tokenizer, folder, inventory_of(checkpoint.model).shape.vocabulary) if tokenizer else {}
        )
        config = checkpoint.family.hf.to_config(checkpoint.model, str(dtype).removeprefix("torch."), tokens)
        if options.sparse:
            config |= {"quantization_config": sparse.description(checkpoint), AS_DENSE: False}
            sparse.write_beside(folder, origin, tokens)
        write_synced(folder / "config.json", json.dumps(config, indent=2) + "\n")
        shards = _write_weights(folder, entries, options.max_shard_size)
        masks = sparse.count(checkpoint) if options.sparse else _write_masks(folder, checkpoint)
    return {
        **origin,
        "out": str(options.out),
        "bytes": sum(entry.nbytes for entry in entries),
        "shards": shards,
        "masks": masks,
        "tokenizer": str(tokenizer) if tokenizer else None,
        "notes": not_of_the_data(tokenizer, checkpoint.section("data")) if tokenizer else [],
    }


def _dense(checkpoint: Checkpoint, dtype: torch.dtype) -> list[Entry]:
    name_of = checkpoint.family.hf.file_name
    return [
        Entry(name_of(weight.name), weight.shape, dtype, partial(checkpoint.dense_weight, weight))
        for weight in checkpoint.weights
    ]


def _origin(checkpoint: Checkpoint, dtype: str, sparse_files: bool) -> dict[str, Any]:
    dense = sum(weight.numel for weight in checkpoint.weights if weight.is_sparse)
    active = sum(
        checkpoint.open_tiles(weight) * weight.layer.grid.tile_size
        for weight in checkpoint.weights
        if weight.layer and weight.is_sparse
    )
    return {
        "tool": "tools.export_hf",
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.step,
        "git": checkpoint.manifest.get("git"),
        "dtype": dtype,
        "sparse": sparse_files,
        "permutation": checkpoint.manifest.get("permutation"),
        "parameters": sum(weight.numel for weight in checkpoint.weights),
        "density": active / dense if dense else 1.0,
    }


def _tokenizer(given: str | None, checkpoint: Checkpoint) -> Path | None:
    if given == "none":
        return None
    found = given or checkpoint.section("data").get("tokenizer")
    if found is not None and not Path(found).is_file():
        raise DataError(
            f"tokenizer {found} {'' if given else '(data.tokenizer of the run) '}{why_no_file(found)}; run this "
            "where the run was started, name the file with --tokenizer, or export without one: --tokenizer none"
        )
    return Path(found) if found else None


def _require_space(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free < needed + (1 << 20):
        raise CheckpointError(
            f"the export needs {byte_count(needed)}, {folder.parent} has {byte_count(free)} free; free space, choose "
            "another OUT, or halve it with --dtype bf16"
        )


def _write_weights(folder: Path, entries: Sequence[Entry], limit: int) -> int:
    """Write ``model*.safetensors`` and their index; returns the number of files."""
    files = stream.split(entries, limit)
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    names = ["model.safetensors"] if len(files) == 1 else names
    total = sum(entry.nbytes for entry in entries)
    with tqdm(total=total, desc="write", unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar:
        for name, part in zip(names, files, strict=True):
            stream.write(folder / name, part, {"format": "pt"}, progress=bar.update)
    # The index is written for a single file too: loaders that take every *.safetensors file go by it where
    # there is one, and so do not take the masks for weights.
    weight_map = {entry.name: name for name, part in zip(names, files, strict=True) for entry in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_synced(folder / "model.safetensors.index.json", json.dumps(index, indent=1) + "\n")
    return len(files)


def _write_masks(folder: Path, checkpoint: Checkpoint) -> int:
    """Write ``masks.safetensors`` if any layer is sparse; returns the number of masks."""
    masked = [weight for weight in checkpoint.weights if weight.has_mask]
    if masked:
        name_of = checkpoint.family.hf.file_name
        layers = {
            name_of(weight.name).removesuffix(".weight"): _description(weight.layer, checkpoint.open_tiles(weight))
            for weight in masked
            if weight.layer
        }
        metadata = {"format": "smet-masks", "version": "1", "layers": json.dumps(layers)}
        entries = []
        for layer, weight in zip(layers, masked, strict=True):
            assert weight.layer is not None
            bits = partial(checkpoint.open_mask, weight)
            entries.append(Entry(layer, (weight.layer.grid.mask_bytes,), torch.uint8, bits))
            for side, order in checkpoint.orders(weight)._asdict().items():
                if order is not None:
                    size = (len(order.features),)
                    entries.append(Entry(f"{layer}.{side}", size, torch.int32, partial(_features, order)))
        stream.write(folder / "masks.safetensors", entries, metadata)
    return len(masked)


def _features(order: Order) -> torch.Tensor:
    return order.features


def _description(spec: LayerSpec, active: int) -> dict[str, Any]:
    return {
        "rows": spec.grid.rows,
        "cols": spec.grid.cols,
        "block": list(spec.grid.tile),
        "transposed": spec.transposed,
        "active": active,
    }


def describe(report: Report) -> str:
    """The report for a person."""
    tokenizer = f"tokenizer {report['tokenizer']}" if report["tokenizer"] else "no tokenizer"
    files = "1 file" if report["shards"] == 1 else f"{report['shards']} files"
    return (
        f"{report['out']}: {report['parameters']:,} parameters in {report['dtype']} ({byte_count(report['bytes'])}, "
        f"{files}), sparse layers at density {report['density']:.4g} ({report['masks']} masks), {tokenizer}; from "
        f"{report['checkpoint']}, step {report['step']}" + "".join(f"\nnote: {note}" for note in report["notes"])
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_tool(build_parser().parse_args(argv), export, describe)


if __name__ == "__main__":
    sys.exit(on_screen(main))
