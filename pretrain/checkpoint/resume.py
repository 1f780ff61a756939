"""From a checkpoint back to a trainer that goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.changes import DATA, changes, completed
from pretrain.checkpoint.content import restore_state, vectors_of
from pretrain.checkpoint.folder import STATE
from pretrain.checkpoint.load import read_vectors
from pretrain.checkpoint.probe import probe_loss, require_same_loss
from pretrain.checkpoint.sound import require_sound
from pretrain.checkpoint.state import read_state
from pretrain.command import again
from pretrain.config import RunConfig
from pretrain.config.retired import without_retired
from pretrain.errors import CheckpointError
from pretrain.models import family_of, inventory_of
from pretrain.records import misfit

if TYPE_CHECKING:
    from pretrain.trainer import Trainer


def resume(trainer: Trainer, path: Path) -> None:
    """Load the checkpoint at ``path`` into a trainer of any layout. Collective.

    One that was imported, not trained, records neither data nor a probe batch (null); what the batch's loss would
    have told, settings have to tell then.

    Raises:
        CheckpointError: it is of another model, or its recorded batch has another loss.
    """
    state = read_state(path)
    _require_readable(state, path)
    vectors = vectors_of(trainer.engine, trainer.bank, trainer.layout)
    other = _formula(state["config"]) != trainer.config.optimizer.name
    read_vectors(path, vectors, trainer.layout, other)
    require_sound(trainer.engine.model, trainer.bank, vectors, state, trainer.layout, path)
    trainer.bank.release()
    trainer.store.publish()
    try:
        restore_state(trainer, state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / STATE} does not fit this version of the program: {misfit(error)}") from error
    if (probe := state["probe"]) is not None:
        _require_known(probe["tokens"], inventory_of(trainer.config.model).shape.vocabulary, path)
        loss = probe_loss(trainer.engine, probe["tokens"], trainer.config.train.micro_batch_size)
        require_same_loss(probe["loss"], loss, trainer.config.train.precision, path)
    else:
        _require_same_function(trainer.config, state["config"], path)
    if trainer.layout.is_main:
        print(f"resumed from {path} after step {trainer.step}", flush=True)


def _require_readable(state: dict[str, Any], path: Path) -> None:
    """Refuse what an earlier release could store otherwise, before any of it is read."""
    problems: list[str] = []
    without_retired("sparsity", state["config"].get("sparsity") or {}, problems)
    if problems:
        raise CheckpointError(f"checkpoint {path}: {problems[0]}")


def _require_known(tokens: list[int], vocab_size: int, path: Path) -> None:
    if not tokens or max(tokens) >= vocab_size:
        raise CheckpointError(f"the recorded batch in {path / STATE} has no tokens of this model's vocabulary")


def require_same_data(state: dict[str, Any], config: RunConfig, fingerprint: str, path: Path) -> None:
    """Refuse to go on with other samples than those that a checkpoint's position counts.

    Where the data lies does not matter: the fingerprint is of its content. Checkpoints that were imported, not
    trained, have none.

    Args:
        state: of the checkpoint at ``path``.
        fingerprint: of this run's training data.

    Raises:
        CheckpointError: the data differs; says in what, and how to go on.
    """
    saved = state["data_fingerprint"]
    if saved in (None, fingerprint):
        return
    shape = ("data.train", "data.curriculum", "data.seq_length", "data.seed")
    found = changes(completed(state["config"], config.model.family), config.to_dict())
    changed = [change for change in found if change.key in shape]
    told = "; ".join(map(str, changed)) or "the files have changed, though not their names"
    remedy = "restore those files"
    if changed:
        remedy = f"to go on: {again(*(change.back for change in changed if change.old not in (None, [])))}"
        if any(change.key in DATA for change in changed):
            remedy += ", or wherever that corpus lies now: its content counts, not its place"
    raise CheckpointError(
        f"checkpoint {path} was trained on other data ({told}; fingerprint {saved[:12]}, this run's is "
        f"{fingerprint[:12]}); {remedy}; another train.output_dir begins at step 1"
    )


def require_same_formula(state: dict[str, Any], config: RunConfig, path: Path) -> None:
    """Refuse to go on with another optimizer than the one whose state a checkpoint holds.

    Before the first step there is no state worth the name: an imported model trains with any.

    Raises:
        CheckpointError: it is another one.
    """
    saved, own = _formula(state["config"]), config.optimizer.name
    if saved != own and state["topology"]["steps_done"]:
        raise CheckpointError(
            f"checkpoint {path} holds the state of the optimizer {saved}, and optimizer.name is {own}; to go on: "
            f"{again(f'optimizer.name={saved}')}; for another optimizer start from an export of its weights"
        )


def _formula(settings: dict[str, Any]) -> str:
    """What the settings of a checkpoint call their optimizer; earlier versions had one."""
    return str((settings.get("optimizer") or {}).get("name") or "adamw")


def _require_same_function(config: RunConfig, saved: dict[str, Any], path: Path) -> None:
    """Compare settings that change what a model computes, but no vector's length."""
    own = config.to_dict()
    functions = {"model": family_of(config.model).function, "sparsity": ("block",)}
    changed = [
        f"{section}.{key} is {own[section][key]}, expected {saved.get(section, {}).get(key)}"
        for section, keys in functions.items()
        for key in keys
        if own[section][key] != saved.get(section, {}).get(key)
    ]
    if changed:
        raise CheckpointError(f"{path} holds another model: {'; '.join(changed)}; start from the run file made with it")
