"""A checkpoint saved at any layout loads at any other: every logical vector bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from pretrain.checkpoint.content import vectors_of
from pretrain.config import RunConfig, config_from_dict
from pretrain.run import prepared
from smet.mask import unpack
from tests.distributed import run_ranks
from tests.pretrain.runs import layout_of, outcome, settings, train_all, write_corpus

pytestmark = pytest.mark.slow

SHAPE = {
    "vocab_size": 98,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    **{f"dp{ranks}-zero{stage}": (ranks, {"zero_stage": stage}) for ranks in (1, 2, 4) for stage in (1, 2, 3)},
    **{f"tp2-zero{stage}": (2, {"tensor": 2, "zero_stage": stage}) for stage in (1, 2, 3)},
    "pp2": (2, {"pipeline": 2, "zero_stage": 1}),
    "tp2-pp2": (4, {"tensor": 2, "pipeline": 2, "zero_stage": 1}),
    **{f"tp2-dp2-zero{stage}": (4, {"tensor": 2, "zero_stage": stage}) for stage in (1, 2, 3)},
}
"""Name to (ranks, parallel section): all that issue 4 asks for."""

SAVED, STEPS = 5, 9
"""Steps of the checkpoints: right behind a topology update at step 4, and behind another at step 8."""


def job(corpus: str, folder: Path, name: str, parallel: dict[str, int]) -> dict[str, Any]:
    given = settings(corpus, folder / name, train__steps=STEPS, train__micro_batch_size=2, checkpoint__interval=SAVED)
    given["evaluation"]["interval"] = 0
    return {**given, "model": SHAPE, "parallel": parallel}


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def whole_vectors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every logical vector of a checkpoint."""
    reader = dcp.FileSystemReader(checkpoint)
    entries = reader.read_metadata().state_dict_metadata
    whole = {name: torch.zeros(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    dcp.load(whole, storage_reader=reader, no_dist=True)
    return whole


def load_each(jobs: list[tuple[dict[str, Any], list[Path]]]) -> list[list[tuple[list[str], float]]]:
    """What ``load`` returns for each job and checkpoint."""
    return [[load(given, checkpoint) for checkpoint in checkpoints] for given, checkpoints in jobs]


def load(given: dict[str, Any], checkpoint: Path) -> tuple[list[str], float]:
    """Vectors that differ from the checkpoint's on this rank, and the next step's loss."""
    trial = copy.deepcopy(given)
    trial["checkpoint"].update(resume=str(checkpoint), interval=0)
    trial["train"]["output_dir"] += f"-from-{checkpoint.parents[1].name}"
    config = config_from_dict(trial)
    return read_back(config, checkpoint)


def read_back(config: RunConfig, checkpoint: Path) -> tuple[list[str], float]:
    """Go on from ``checkpoint``: vectors that differ from its own on this rank, and the next step's loss."""
    with prepared(config, layout_of(config)) as trainer:
        stored = whole_vectors(checkpoint)
        live = vectors_of(trainer.engine, trainer.bank, trainer.layout)
        wrong = [
            name
            for name, vector in live.items()
            if not torch.equal(stored[name][vector.start : vector.start + vector.local.numel()], vector.local)
        ]
        covered = {name for names in trainer.layout.gather_objects(list(live)) for name in names}
        wrong += sorted(set(stored) - covered)
        trainer.topology.before_step()
        return wrong, trainer.engine.train_step(trainer.loader.batches(trainer.consumed_samples))


def by_ranks(function: Any, jobs: dict[str, Any], timeout: float) -> dict[str, list[Any]]:
    """Run each layout's job in its number of processes: layout to what its ranks returned."""
    results: dict[str, list[Any]] = {}
    for ranks in (1, 2, 4):
        names = [name for name, (world, _) in LAYOUTS.items() if world == ranks]
        per_rank = run_ranks(function, ranks, [jobs[name] for name in names], timeout=timeout)
        results.update({name: [found[i] for found in per_rank] for i, name in enumerate(names)})
    return results


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A job of each layout, trained to its end with a checkpoint on the way."""
    folder = tmp_path_factory.mktemp("layouts")
    corpus = write_corpus(folder / "corpus")
    jobs = {name: job(corpus, folder, name, parallel) for name, (_, parallel) in LAYOUTS.items()}
    by_ranks(train_all, jobs, timeout=600)
    return jobs


def output(given: dict[str, Any]) -> Path:
    return Path(given["train"]["output_dir"])


def test_every_layout_reads_every_other(saved: dict[str, dict[str, Any]]) -> None:
    checkpoints = [step_folder(output(given), SAVED) for given in saved.values()]
    jobs = {name: (given, checkpoints) for name, given in saved.items()}
    results = by_ranks(load_each, jobs, timeout=1500)
    losses: dict[str, dict[str, float]] = {name: {} for name in LAYOUTS}
    for reader, per_rank in results.items():
        for rank, found in enumerate(per_rank):
            for writer, (wrong, loss) in zip(saved, found, strict=True):
                assert not wrong, f"{reader} (rank {rank}) reading {writer}: {wrong[:3]}"
                losses[writer][reader] = loss
    for writer, by_reader in losses.items():
        expected = by_reader["dp1-zero1"]
        assert all(loss == pytest.approx(expected, rel=1e-5) for loss in by_reader.values()), writer


def test_the_same_layout_goes_on_bit_for_bit(saved: dict[str, dict[str, Any]]) -> None:
    jobs = copy.deepcopy(saved)
    for name, given in jobs.items():
        given["checkpoint"]["resume"] = str(step_folder(output(saved[name]), SAVED))
        given["train"]["output_dir"] += "-continued"
    by_ranks(train_all, jobs, timeout=600)
    for name in LAYOUTS:
        uninterrupted, continued = (outcome(output(run[name])) for run in (saved, jobs))
        assert continued["losses"] == uninterrupted["losses"][SAVED:], name
        expected = whole_vectors(step_folder(output(saved[name]), STEPS))
        found = whole_vectors(step_folder(output(jobs[name]), STEPS))
        assert found.keys() == expected.keys(), name
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == [], name


def test_shards_with_other_numbers_of_active_weights_are_among_them(saved: dict[str, dict[str, Any]]) -> None:
    """What the matrix is worth: an update of whole layers leaves the two tensor-parallel shards unequal."""
    vectors = whole_vectors(step_folder(output(saved["dp1-zero1"]), SAVED))
    halves = [mask.chunk(2) for name, mask in vectors.items() if name.endswith(".mask")]
    active = [tuple(int(unpack(half, half.numel() * 8).sum()) for half in pair) for pair in halves]
    assert any(first != second for first, second in active)
    drawn = whole_vectors(step_folder(output(saved["tp2-zero1"]), SAVED))
    assert any(not torch.equal(vectors[name], drawn[name]) for name in vectors if name.endswith(".mask"))
