"""Loading a checkpoint takes one layer's memory beside the rank's own shard, and never more than a step does."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.load import read_vectors
from pretrain.config import config_from_dict
from pretrain.run import prepared
from tests.distributed import run_ranks
from tests.pretrain.runs import layout_of, settings, train_all, write_corpus

pytestmark = pytest.mark.slow

SHAPE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 4, "num_key_value_heads": 4}
LAYERS, DENSITY = 3, 0.5
LAYER = int(SHAPE["hidden_size"] * SHAPE["intermediate_size"] * DENSITY) * 13
"""Bytes of the largest layer: weights, two moments and ages."""
FIXED = 8 << 20
"""Bytes that no model's size changes: buffers of files, checksums and process groups."""


def job(corpus: str, output: Path, stage: int, **changes: Any) -> dict[str, Any]:
    given = settings(corpus, output, parallel__zero_stage=stage, train__micro_batch_size=1, **changes)
    given["model"].update(SHAPE, num_hidden_layers=LAYERS)
    given["sparsity"]["density"] = DENSITY
    return {**given, "evaluation": {"interval": 0}}


def status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def peaks(given: dict[str, Any], steps: int) -> dict[str, int]:
    """Peak host memory of this rank until ``steps`` steps are done, and how much of it reading vectors added."""
    import pretrain.checkpoint.resume as program

    # Freed blocks go back to the system at once: what is counted is memory in use, not what malloc keeps.
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    added: list[int] = []
    highest = 0

    def peak() -> int:
        return max(highest, status("VmHWM"))

    def measured(*arguments: Any) -> None:
        nonlocal highest
        highest, before = peak(), status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        read_vectors(*arguments)
        added.append(status("VmHWM") - before)

    program.read_vectors = measured
    config = config_from_dict(given)
    layout = layout_of(config)
    begin = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with prepared(config, layout) as trainer:
        for _ in range(steps):
            trainer.topology.before_step()
            trainer.engine.train_step(trainer.loader.batches(0))
    return {"peak": peak() - begin, "added": max(added, default=0)}


@pytest.mark.parametrize(("written_by", "stage"), [(1, 2), (2, 3)])
def test_own_shard_plus_the_largest_layer(tmp_path: Path, written_by: int, stage: int) -> None:
    """A model with 170 MB of state (weights, moments, ages), read by two ranks from files of one and of two."""
    corpus = write_corpus(tmp_path / "corpus", tokens=5000)
    source = job(corpus, tmp_path / "source", stage, train__stop_at=1)
    run_ranks(train_all, written_by, [source], timeout=300)
    [saved] = (tmp_path / "source" / "checkpoints").glob("step-*")
    size = sum(path.stat().st_size for path in saved.iterdir())
    assert size > 150e6
    fresh = run_ranks(peaks, 2, job(corpus, tmp_path / "fresh", stage), 1, timeout=300)
    again = job(corpus, tmp_path / "resumed", stage, checkpoint__resume=str(saved))
    resumed = run_ranks(peaks, 2, again, 0, timeout=300)
    print(f"{size / 1e6:.0f} MB of state, {LAYER / 1e6:.1f} MB in its largest layer; fresh {fresh}; resumed {resumed}")
    for one_step, loaded in zip(fresh, resumed, strict=True):
        assert 0 < loaded["added"] < LAYER + FIXED
        assert loaded["peak"] < one_step["peak"] + LAYER + FIXED
