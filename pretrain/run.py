"""One run from its settings to its end: the order in which everything is set up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from pretrain.config.names import in_run_file, settings_by_run_file
from pretrain.data.corpus import Corpus, check_vocabulary, end_of_document, open_corpus
from pretrain.data.loader import BatchLoader
from pretrain.data.manifest import manifest_path
from pretrain.data_specs import blend_spec, training_spec
from pretrain.ends import broken_line, last_line, why_ended
from pretrain.engine import Engine
from pretrain.engine.log import listen, stop_listening
from pretrain.errors import DataError
from pretrain.files import sha256_of
from pretrain.first_masks import first_masks
from pretrain.heartbeat import Heartbeat, require_free
from pretrain.idle import idle
from pretrain.layout import Layout
from pretrain.lookup import require_found
from pretrain.models import inventory_of
from pretrain.origin import origin_of
from pretrain.parallel.groups import require_alike
from pretrain.paths import why_no_file
from pretrain.products import choose_products
from pretrain.run_folder import RunFolder
from pretrain.run_folder.reader import LOGS
from pretrain.stopping import StopRequest
from pretrain.summary import first_lines
from pretrain.trainer import Trainer
from pretrain.yardstick import yardstick
from smet import MaskBank, TopologyController
from smet.say import note


@settings_by_run_file()
def run(config: RunConfig, layout: Layout, stop: StopRequest | None = None) -> Trainer:
    """Train, from the beginning or from a checkpoint. Collective over all ranks.

    Raises:
        UserError: as ``prepared``; or what stops a run that had begun.
    """
    with prepared(config, layout, stop) as trainer:
        first = trainer.step
        try:
            trainer.fit()
        except BaseException:
            if layout.is_main:
                print(broken_line(trainer), flush=True)
            raise
    if layout.is_main:
        trainer.folder.append_event("end", trainer.step, why=why_ended(trainer, first))
        print(last_line(trainer, first), flush=True)
    return trainer


@contextmanager
def prepared(config: RunConfig, layout: Layout, stop: StopRequest | None = None) -> Iterator[Trainer]:
    """A run that is set up to its first step: data, model, engine, checkpoint, run folder. Collective.

    What watches and logs it ends with the block, and where setting up fails: a watchdog that stayed would one day end
    a process in which another run is at work.

    Raises:
        UserError: bad data, a folder or checkpoint of another run; raised on every rank.
    """
    operation = config.operation
    limits = (operation.heartbeat, operation.stuck_after, operation.start_within)
    heartbeat = Heartbeat(RunFolder(config.train.output_dir), layout.rank, layout.world_size, *limits)
    with ExitStack() as ending:
        ending.callback(stop_listening)
        ending.callback(heartbeat.close)
        trainer = _prepare(config, layout, stop or StopRequest(), heartbeat)
        ending.callback(trainer.close)
        yield trainer


@settings_by_run_file()
def _prepare(config: RunConfig, layout: Layout, stop: StopRequest, heartbeat: Heartbeat) -> Trainer:
    """The order in which a run is set up."""
    layout.agree(lambda: require_found(config))
    asked = config.sparsity.balance
    stop.limit(config.operation.time_limit, config.operation.time_margin)
    folder = heartbeat.folder
    log = listen(folder.path / LOGS, layout.rank)
    accumulation = config.accumulation(layout.dp_size)
    train_data, validation_data = layout.agree(lambda: _open_data(config, folder))
    layout.agree(lambda: require_free(folder) if layout.is_main else None)
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
    log.open()
    for notice in idle(config):
        note(notice)
    trainer.yardstick = yardstick(trainer)
    balance = _balance_as_it_was(config) if asked != config.sparsity.balance else []
    bends = origin.what_bends(trainer) if origin and layout.is_main else []
    lines = first_lines(trainer, log, [*remarks, *measured, *bends, *balance])
    if layout.is_main:
        print("\n".join(lines), flush=True)
    return trainer


def _balance_as_it_was(config: RunConfig) -> list[str]:
    """Where the run file leaves the balance to the program, and the run began with another one than it would now."""
    sparsity = config.sparsity
    if sparsity.block == (1, 1):
        return []
    return [f"sparsity.balance is {sparsity.balance} and prune_start {sparsity.prune_start:g}, as the run began"]


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
        tokenizer = sha256_of(path)
    corpora = []
    check = os.environ.get("LOCAL_RANK", "0") == "0"  # once per host: each may have a copy of its own
    for spec in (training_spec(data), blend_spec(data.validation)):
        corpus = open_corpus(spec, data.seq_length, data.seed, check) if spec else None
        if corpus is not None:
            check_vocabulary(corpus, inventory_of(config.model).shape.vocabulary, tokenizer)
            corpus.sample(0)  # ids that the model does not know are refused before anything is built
            bare = [prefix for prefix in corpus.sizes() if not manifest_path(prefix).is_file()]
            if tokenizer and bare:
                note(f"{', '.join(bare)}: no manifest, so nothing tells whether data.tokenizer made it")
        corpora.append(corpus)
    train, validation = corpora
    assert train is not None
    if data.reset_attention:  # resolved here, so that the saved settings say all about the model
        data.eos_id = end_of_document([corpus for corpus in corpora if corpus is not None], data.eos_id)
    settle(config, folder.settings())
    folder.require_same_run(config)
    return train, validation


def _callbacks(config: RunConfig, folder: RunFolder, layout: Layout, validation: BatchLoader | None) -> list[Callback]:
    """All callbacks, in the order of ``callbacks.base.ORDER``."""
    settings = config.checkpoint
    permutation = permutation_digest(config.model, config.sparsity) if layout.is_main else None  # who publishes
    saver = Saver(folder.checkpoints, layout, settings.keep_last, settings.keep_every, permutation)
    return callbacks_of(Parts(config, layout, folder, saver, resume, validation))
