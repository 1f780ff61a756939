"""One run from its settings to its end: the order in which everything is set up."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from pretrain.build import build_engine, deepspeed_config
from pretrain.callbacks.base import Callback
from pretrain.callbacks.table import Parts, callbacks_of
from pretrain.changes import settle
from pretrain.checkpoint.masks import SavedMasks
from pretrain.checkpoint.permutation import permutation_digest
from pretrain.checkpoint.resume import resume
from pretrain.checkpoint.save import Saver
from pretrain.command import told
from pretrain.config import RunConfig
from pretrain.config.names import idle_in_run_file, in_run_file, settings_by_run_file
from pretrain.config.schema import Source, Stage
from pretrain.data.corpus import Corpus, check_vocabulary, end_of_document, open_corpus
from pretrain.data.loader import BatchLoader
from pretrain.ends import broken_line, last_line, why_ended
from pretrain.engine import Engine
from pretrain.errors import DataError
from pretrain.first_masks import first_masks
from pretrain.heartbeat import Heartbeat, require_free
from pretrain.layout import Layout
from pretrain.lookup import require_found
from pretrain.models import inventory_of
from pretrain.origin import origin_of
from pretrain.parallel.groups import require_alike
from pretrain.paths import why_no_file
from pretrain.plan import cut
from pretrain.products import choose_products, micro_batch
from pretrain.run_folder import RunFolder
from pretrain.stopping import StopRequest
from pretrain.trainer import Trainer
from smet import MaskBank, TopologyController, compute, kernels
from smet.say import note
from smet.starved import empty, starved


@settings_by_run_file()
def run(config: RunConfig, layout: Layout, stop: StopRequest | None = None) -> Trainer:
    """Train, from the beginning or from a checkpoint. Collective over all ranks.

    Raises:
        UserError: as ``prepare``; or what stops a run that had begun.
    """
    trainer = prepare(config, layout, stop)
    first = trainer.step
    try:
        trainer.fit()
    except BaseException:
        if layout.is_main:
            print(broken_line(trainer), flush=True)
        raise
    finally:
        trainer.heartbeat.close()
    if layout.is_main:
        trainer.folder.append_event("end", trainer.step, why=why_ended(trainer, first))
        print(last_line(trainer, first), flush=True)
    return trainer


@settings_by_run_file()
def prepare(config: RunConfig, layout: Layout, stop: StopRequest | None = None) -> Trainer:
    """Set a run up to its first step: data, model, engine, checkpoint, run folder. Collective.

    Raises:
        UserError: bad data, a folder or checkpoint of another run; raised on every rank.
    """
    layout.agree(lambda: require_found(config))
    asked = config.sparsity.balance
    operation = config.operation
    stop = stop or StopRequest()
    stop.limit(operation.time_limit, operation.time_margin)
    folder = RunFolder(config.train.output_dir)
    accumulation = config.accumulation(layout.dp_size)
    train_data, validation_data = layout.agree(lambda: _open_data(config, folder))
    layout.agree(lambda: require_free(folder) if layout.is_main else None)
    limits = (operation.heartbeat, operation.stuck_after, operation.start_within)
    heartbeat = Heartbeat(folder, layout.rank, layout.world_size, *limits)
    heartbeat.start()
    heartbeat.mark("verifying checkpoints", 0)
    origin = origin_of(config, folder, layout, train_data.fingerprint)
    checkpoint = origin.path if origin else None
    settle(config, origin.state["config"] if origin else {})

    heartbeat.mark("building the model", 0)
    settings = deepspeed_config(config, layout.dp_size)
    engine = _engine(config, layout, settings, checkpoint, train_data)
    require_alike(engine.collective_facts(), layout)
    bank, topology = layout.agree(lambda: _topology(config, layout, engine))

    micro = config.train.micro_batch_size
    loader = BatchLoader(train_data, micro, accumulation, layout.dp_rank, layout.dp_size)
    trainer = Trainer(config, layout, engine, bank, topology, loader, folder, stop, heartbeat)
    heartbeat.mark("measuring products", 0)
    measured = choose_products(trainer, checkpoint)
    validation = None
    if validation_data is not None:
        validation = BatchLoader(validation_data, micro, 1, layout.dp_rank, layout.dp_size)
        trainer.corpora.append(validation_data)
    trainer.callbacks = layout.agree(lambda: _callbacks(config, folder, layout, validation))
    if checkpoint is not None:
        heartbeat.mark("loading the checkpoint", 0)
        resume(trainer, checkpoint)
        if config.sparsity.falls:
            layout.agree(topology.take_position)  # what is open is told below
    remarks = folder.remarks(config, trainer.step) if layout.is_main else []
    layout.agree(lambda: folder.begin(config, settings, trainer.step) if layout.is_main else None)
    heartbeat.publish()
    for notice in idle_in_run_file(config.sparsity):
        note(notice)
    weights = layout.gather_objects(_sparse_weights(trainer))
    starved = _starved(trainer)
    if layout.is_main:
        remarks += [*measured, *(origin.what_bends(trainer) if origin else [])]
        if config.sparsity.balance != asked and config.sparsity.block != (1, 1):
            start = config.sparsity.prune_start
            remarks.append(f"sparsity.balance is {config.sparsity.balance} and prune_start {start:g}, as the run began")
        remarks += starved
        print("\n".join([*remarks, _summary(trainer, weights)]), flush=True)
    return trainer


def _topology(config: RunConfig, layout: Layout, engine: Engine) -> tuple[MaskBank, TopologyController]:
    """Masks, and what changes them. Collective over the data-parallel ranks, which fail together."""
    sparsity = config.sparsity
    bank = MaskBank(engine.model, layout.group, replicated=sparsity.mask_residency == "replicated")
    topology = TopologyController(
        engine.model, sparsity, engine.store, bank, config.train.steps, layout.tensor_rank, layout.tensor_size,
        tell=lambda notice: note(in_run_file(notice)),
    )  # fmt: skip
    return bank, topology


def _engine(
    config: RunConfig, layout: Layout, settings: dict[str, Any], checkpoint: Path | None, data: Corpus
) -> Engine:
    """The engine, built anew or around what the checkpoint says of its shapes. Collective."""
    if checkpoint is None:
        return build_engine(config, layout, settings, first=first_masks(config, layout, data))
    masks = layout.agree(lambda: SavedMasks(checkpoint))
    return build_engine(config, layout, settings, masks)


def _open_data(config: RunConfig, folder: RunFolder) -> tuple[Corpus, Corpus | None]:
    """Open and check corpora, tokenizer and run folder; no collectives in here."""
    data, tokenizer = config.data, None
    if data.tokenizer is not None:
        path = Path(data.tokenizer)
        if not path.is_file():
            raise DataError(
                f"data.tokenizer {path} {why_no_file(path)}; give the place where it lies now, data.tokenizer=null to "
                f"go without its check, or train one with {told('tokenizer', 'train')}"
            )
        tokenizer = hashlib.sha256(path.read_bytes()).hexdigest()
    corpora = []
    check = os.environ.get("LOCAL_RANK", "0") == "0"  # once per host: each may have a copy of its own
    for spec in (_curriculum(data.curriculum) or _blend(data.train), _blend(data.validation)):
        corpus = open_corpus(spec, data.seq_length, data.seed, check) if spec else None
        if corpus is not None:
            check_vocabulary(corpus, inventory_of(config.model).shape.vocabulary, tokenizer)
            corpus.sample(0)  # ids that the model does not know are refused before anything is built
        corpora.append(corpus)
    train, validation = corpora
    assert train is not None
    if data.reset_attention:  # resolved here, so that the saved settings say all about the model
        data.eos_id = end_of_document([corpus for corpus in corpora if corpus is not None], data.eos_id)
    settle(config, folder.settings())
    folder.require_same_run(config)
    return train, validation


def _blend(sources: tuple[Source, ...]) -> Any:
    if len(sources) == 1:
        return sources[0].path
    return [{"path": source.path, "weight": source.weight} for source in sources]


def _curriculum(stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
    return [
        {"blend": [dataclasses.asdict(source) for source in stage.blend]}
        | ({} if stage.until_tokens is None else {"until_tokens": stage.until_tokens})
        for stage in stages
    ]


def _callbacks(config: RunConfig, folder: RunFolder, layout: Layout, validation: BatchLoader | None) -> list[Callback]:
    """All callbacks, in the order of ``callbacks.base.ORDER``."""
    settings = config.checkpoint
    permutation = permutation_digest(config.model, config.sparsity) if layout.is_main else None  # who publishes
    saver = Saver(folder.checkpoints, layout, settings.keep_last, settings.keep_every, permutation)
    return callbacks_of(Parts(config, layout, folder, saver, resume, validation))


def _sparse_weights(trainer: Trainer) -> tuple[int, int]:
    """Active and all weights of this rank's sparse layers, 0 where another data-parallel rank counts them."""
    layers = trainer.topology.all_layers.values() if trainer.layout.is_first_replica else ()
    return sum(la.active * la.grid.tile_size for la in layers), sum(la.grid.rows * la.grid.cols for la in layers)


def _starved(trainer: Trainer) -> list[str]:
    """A line about rows and columns of tiles without any active one, over all tensor-parallel ranks. Collective."""
    bank, layout = trainer.bank, trainer.layout
    layers = trainer.topology.all_layers
    own = {name: empty(bank.bits(la), la.grid) for name, la in layers.items()
           if la.grid.tile_size > 1 and not la.is_full}  # fmt: skip
    bank.release()
    found = layout.gather_objects(own if layout.is_first_replica else {})
    return [f"warning: {in_run_file(line)}" for line in starved(found)]


def _density(trainer: Trainer, stored: float) -> str:
    """How dense the sparse layers are, as the summary says it."""
    sparsity = trainer.config.sparsity
    if not sparsity.falls:
        return f"active (density {stored:.4g}"
    return (
        f"stored (density {stored:.4g}, of which {trainer.topology.density:.4g} is open and {sparsity.density:g} will"
        " be left; storage keeps its first size"
    )


def _summary(trainer: Trainer, counts: list[tuple[int, int]]) -> str:
    """One resolved line: what trains, how, on what. ``counts``: what ``_sparse_weights`` is on each rank."""
    config, layout = trainer.config, trainer.layout
    weights, total = (sum(numbers) for numbers in zip(*counts, strict=True))
    rows, cols = config.sparsity.block
    permuted = f", permuted {config.sparsity.permute}" if config.sparsity.is_permuted else ""
    degrees = {"data": layout.dp_size, "tensor": layout.tensor_size, "pipeline": layout.stages}
    ranks = " x ".join(f"{name} {size}" for name, size in degrees.items() if size > 1 or name == "data")
    stages = f", {cut.describe(config)}" if layout.stages > 1 else ""
    formula = trainer.store.optimizer.formula.name
    optimizer = "SmetAdamW" if formula == "adamw" else formula
    products = compute.describe(trainer.topology.all_layers.values(), *micro_batch(config))
    return (
        f"SMET: {weights:,} of {total:,} sparse-layer weights {_density(trainer, weights / total)}, block "
        f"{rows}x{cols}{permuted}); {optimizer} in ZeRO-{config.parallel.zero_stage}, {ranks} on {layout.device.type}"
        f"{stages}; {config.train.precision} weights and gradients, fp32 master and moments; "
        f"{config.train.micro_batch_size} x {config.accumulation(layout.dp_size)} x {layout.dp_size} sequences of "
        f"{config.data.seq_length} tokens per step; products by {products}; {kernels.describe(layout.device.type)}"
    )
