"""One run from its settings to its end: the order in which everything is set up."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from pretrain.build import build_engine, deepspeed_config
from pretrain.callbacks.base import Callback
from pretrain.callbacks.checkpointing import CheckpointCallback
from pretrain.callbacks.consistency import ConsistencyCallback
from pretrain.callbacks.evaluation import EvaluationCallback
from pretrain.callbacks.logging import MetricsCallback, ProgressCallback
from pretrain.callbacks.memory import MemoryCallback
from pretrain.callbacks.sources import SourcesCallback
from pretrain.callbacks.topology import TopologyCallback
from pretrain.checkpoint.content import restore_state, saved_costs, vectors_of
from pretrain.checkpoint.load import choose, read_state, read_vectors
from pretrain.checkpoint.masks import SavedMasks
from pretrain.checkpoint.probe import probe_loss, require_same_loss
from pretrain.checkpoint.save import Saver
from pretrain.config import RunConfig
from pretrain.config.schema import Source, Stage
from pretrain.data.corpus import Corpus, check_vocabulary, end_of_document, open_corpus
from pretrain.data.loader import BatchLoader
from pretrain.errors import CheckpointError, DataError
from pretrain.layout import Layout
from pretrain.run_folder import RunFolder
from pretrain.trainer import Trainer
from smet import MaskBank, TopologyController, kernels
from smet.zero import ZeroStore


def run(config: RunConfig, layout: Layout) -> Trainer:
    """Train, from the beginning or from a checkpoint. Collective over all ranks.

    Raises:
        UserError: as ``prepare``; or what stops a run that had begun.
    """
    trainer = prepare(config, layout)
    trainer.fit()
    return trainer


def prepare(config: RunConfig, layout: Layout) -> Trainer:
    """Set a run up to its first step: data, model, engine, checkpoint, run folder. Collective.

    Raises:
        UserError: bad data, a folder or checkpoint of another run; raised on every rank.
    """
    folder = RunFolder(config.train.output_dir)
    accumulation = config.accumulation(layout.dp_size)
    train_data, validation_data = layout.agree(lambda: _open_data(config, folder))
    checkpoint = choose(config.checkpoint.resume, folder.checkpoints, layout)

    settings = deepspeed_config(config, layout.dp_size)
    masks, costs = None, None
    if checkpoint is not None:
        masks = layout.agree(lambda: SavedMasks(checkpoint))
        costs = saved_costs(read_state(checkpoint), config)
    engine = build_engine(config, layout, settings, masks, costs)
    store = ZeroStore(engine.deepspeed)
    bank = MaskBank(engine.model, layout.group, replicated=config.sparsity.mask_residency == "replicated")
    topology = TopologyController(
        engine.model, config.sparsity, store, bank, config.train.steps, layout.tensor_rank, layout.tensor_size
    )

    micro = config.train.micro_batch_size
    loader = BatchLoader(train_data, micro, accumulation, layout.dp_rank, layout.dp_size)
    trainer = Trainer(config, layout, engine, store, bank, topology, loader)
    validation = None
    if validation_data is not None:
        validation = BatchLoader(validation_data, micro, 1, layout.dp_rank, layout.dp_size)
    trainer.callbacks = _callbacks(config, folder, layout, validation)
    if checkpoint is not None:
        resume(trainer, checkpoint)
    layout.agree(lambda: folder.begin(config, settings, trainer.step) if layout.is_main else None)
    if layout.is_main:
        print(_summary(trainer), flush=True)
    return trainer


def _open_data(config: RunConfig, folder: RunFolder) -> tuple[Corpus, Corpus | None]:
    """Open and check corpora, tokenizer and run folder; no collectives in here."""
    data, tokenizer = config.data, None
    if data.tokenizer is not None:
        path = Path(data.tokenizer)
        if not path.is_file():
            raise DataError(f"data.tokenizer {path} does not exist; train one with python -m tools.train_tokenizer")
        tokenizer = hashlib.sha256(path.read_bytes()).hexdigest()
    corpora = []
    for spec in (_curriculum(data.curriculum) or _blend(data.train), _blend(data.validation)):
        corpus = open_corpus(spec, data.seq_length, data.seed) if spec else None
        if corpus is not None:
            check_vocabulary(corpus, config.model.vocab_size, tokenizer)
            corpus.sample(0)  # ids that the model does not know are refused before anything is built
        corpora.append(corpus)
    train, validation = corpora
    assert train is not None
    if data.reset_attention:  # resolved here, so that the saved settings say all about the model
        data.eos_id = end_of_document([corpus for corpus in corpora if corpus is not None], data.eos_id)
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
    """In the order in which a step's end is worked off; see each callback for why."""
    settings = config.checkpoint
    saver = Saver(folder.checkpoints, layout, settings.keep_last, settings.keep_every)
    return [
        *([EvaluationCallback(validation)] if validation is not None else []),
        TopologyCallback(folder),
        ConsistencyCallback(),
        MemoryCallback(folder),
        SourcesCallback(),
        CheckpointCallback(saver),
        MetricsCallback(folder, config.logging.tensorboard),
        ProgressCallback(),
    ]


def resume(trainer: Trainer, path: Path) -> None:
    """Load the checkpoint at ``path`` into a trainer of any layout. Collective.

    One that was imported, not trained, records neither data nor a probe batch (null); what the batch's loss would
    have told, settings have to tell then.

    Raises:
        CheckpointError: it is of another model or corpus, or its recorded batch has another loss.
    """
    state = read_state(path)
    fingerprint = trainer.loader.corpus.fingerprint
    if state["data_fingerprint"] not in (None, fingerprint):
        raise CheckpointError(
            f"checkpoint {path} was trained on other data (fingerprint {state['data_fingerprint'][:12]}, this run's is "
            f"{fingerprint[:12]}); give the same data.train, data.seq_length and data.seed"
        )
    vectors = vectors_of(trainer.engine, trainer.store, trainer.bank, trainer.layout)
    read_vectors(path, vectors, trainer.layout)
    trainer.bank.release()
    trainer.store.publish()
    restore_state(trainer, state)
    if (probe := state["probe"]) is not None:
        loss = probe_loss(trainer.engine, probe["tokens"], trainer.config.train.micro_batch_size)
        require_same_loss(probe["loss"], loss, trainer.config.train.precision, path)
    else:
        _require_same_function(trainer.config.to_dict(), state["config"], path)
    if trainer.layout.is_main:
        print(f"resumed from {path} after step {trainer.step}", flush=True)


_FUNCTION = {
    "model": ("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"),
    "sparsity": ("block", "row_parallel"),
}
"""Settings that change what a model computes, but no vector's length."""


def _require_same_function(own: dict[str, Any], saved: dict[str, Any], path: Path) -> None:
    changed = [
        f"{section}.{key} is {own[section][key]}, expected {saved[section][key]}"
        for section, keys in _FUNCTION.items()
        for key in keys
        if own[section][key] != saved[section][key]
    ]
    if changed:
        raise CheckpointError(f"{path} holds another model: {'; '.join(changed)}; start from the run file made with it")


def _summary(trainer: Trainer) -> str:
    """One resolved line: what trains, how, on what."""
    config, layout = trainer.config, trainer.layout
    layers = trainer.topology.all_layers.values()
    weights = sum(layer.active * layer.grid.block_size for layer in layers)
    total = sum(layer.grid.rows * layer.grid.cols for layer in layers)
    rows, cols = config.sparsity.block
    degrees = {"data": layout.dp_size, "tensor": layout.tensor_size, "pipeline": layout.stages}
    ranks = " x ".join(f"{name} {size}" for name, size in degrees.items() if size > 1 or name == "data")
    share = " on this rank" if layout.tensor_size * layout.stages > 1 else ""
    return (
        f"SMET: {weights:,} of {total:,} sparse-layer weights active{share} (density {weights / total:.4g}, block "
        f"{rows}x{cols}); SmetAdamW in ZeRO-{config.parallel.zero_stage}, {ranks} on {layout.device.type}; "
        f"{config.train.precision} weights and gradients, fp32 master and moments; {config.train.micro_batch_size} x "
        f"{config.accumulation(layout.dp_size)} x {layout.dp_size} sequences of {config.data.seq_length} tokens "
        f"per step; {kernels.describe(layout.device.type)}"
    )
