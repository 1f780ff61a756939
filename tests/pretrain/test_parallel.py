"""Every layout trains the same model: losses, gradients and masks of one rank, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus

SHAPE = {
    "vocab_size": 98,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
SPARSITY = {"density": 0.29, "update_interval": 7, "warmup_steps": 3, "stop_fraction": 1.0, "topology_ranges": 2}

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, {"tensor": 2, "zero_stage": 2}),
    "tp2-sequence": (2, {"tensor": 2, "zero_stage": 1, "sequence": True}),
    "pp2": (2, {"pipeline": 2, "zero_stage": 1}),
    "tp2-pp2": (4, {"tensor": 2, "pipeline": 2, "zero_stage": 1}),
    "tp2-pp2-sequence": (4, {"tensor": 2, "pipeline": 2, "zero_stage": 1, "sequence": True}),
    "tp2-dp2-zero1": (4, {"tensor": 2, "zero_stage": 1}),
    "tp2-dp2-zero2": (4, {"tensor": 2, "zero_stage": 2, "sequence": True}),
    "tp2-dp2-zero3": (4, {"tensor": 2, "zero_stage": 3}),
    "pp2-dp2": (4, {"pipeline": 2, "zero_stage": 1}),
}
"""Name to (ranks, parallel section)."""

VARIANTS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "tied-recomputed": {"model": {**SHAPE, "tie_word_embeddings": True}, "train__activation_checkpointing": True},
    "dense": {"sparsity": {"method": "dense"}},
    "first-step": {"train__stop_at": 1},
    "bf16": {"train__precision": "bf16", "train__steps": 9},
}
STEPS = 20
CLIP = 0.3
"""Below the gradients' norms in these runs, so that a wrong norm would change the losses."""

CASES = [(layout, "sparse") for layout in LAYOUTS]
CASES += [(layout, "tied-recomputed") for layout in ("tp2-sequence", "pp2", "tp2-pp2", "tp2-dp2-zero3")]
FIRST = [(layout, "first-step") for layout in LAYOUTS]
ROUNDED = [(layout, "bf16") for layout in LAYOUTS]
CASES += [(layout, "dense") for layout in ("tp2", "pp2", "tp2-pp2-sequence")]


def job(corpus: str, folder: Path, name: str, parallel: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    changes = {key: value for key, value in variant.items() if "__" in key}
    given = settings(corpus, folder / name, **{"train__steps": STEPS, "train__micro_batch_size": 2, **changes})
    given["optimizer"]["gradient_clipping"] = CLIP
    given["evaluation"] = {"interval": 10, "samples": 5}
    sections = {key: value for key, value in variant.items() if "__" not in key}
    return {**given, "model": SHAPE, "sparsity": SPARSITY, **sections, "parallel": parallel}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(layout, variant) -> outcome; layout ``one`` is a single rank. One launch per number of ranks."""
    corpus = write_corpus(folder / "corpus")
    layouts = {"one": (1, {"zero_stage": 1}), **LAYOUTS}
    found = {}
    for ranks in (1, 2, 4):
        cases = [("one", variant) for variant in VARIANTS] + CASES + FIRST + ROUNDED
        names = [case for case in cases if layouts[case[0]][0] == ranks]
        jobs = [job(corpus, folder, f"{n}-{v}", layouts[n][1], VARIANTS[v]) for n, v in names]
        for key, outcome in zip(names, run_ranks(train_all, ranks, jobs, timeout=600)[0], strict=True):
            found[key] = outcome
    return found


@pytest.mark.parametrize(("layout", "variant"), CASES)
def test_losses_and_clipped_norms_equal_one_rank(outcomes: Any, layout: str, variant: str) -> None:
    one, many = outcomes["one", variant], outcomes[layout, variant]
    assert many["steps"] == one["steps"] == list(range(1, STEPS + 1))
    assert many["losses"][0] == pytest.approx(one["losses"][0], rel=1e-6)
    assert many["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert many["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert min(one["norms"]) > CLIP, "clipping is at work at every step"
    assert many["validation"] == pytest.approx(one["validation"], rel=1e-5)
    assert len(many["digests"]) == len(one["digests"]) == (0 if variant == "dense" else 2)


@pytest.mark.parametrize(("layout", "variant"), ROUNDED)
def test_bf16_trains_alike_in_every_layout(outcomes: Any, layout: str, variant: str) -> None:
    one, many = outcomes["one", variant], outcomes[layout, variant]
    assert many["losses"] == pytest.approx(one["losses"], rel=5e-3)
    assert many["losses"][-1] < many["losses"][0] - 0.05
    assert len(many["digests"]) == 1


def read_vectors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every logical vector of a checkpoint, whole."""
    reader = dcp.FileSystemReader(checkpoint)
    metadata = reader.read_metadata().state_dict_metadata
    whole = {name: torch.zeros(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()}
    dcp.load(whole, storage_reader=reader, no_dist=True)
    return whole


def both(folder: Path, layout: str, variant: str, step: int) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, one rank's, the layout's) of every logical vector saved after ``step``."""
    one, many = (read_vectors(folder / f"{n}-{variant}" / "checkpoints" / f"step-{step:08d}") for n in ("one", layout))
    assert many.keys() == one.keys()
    return [(name, one[name], many[name]) for name in one]


@pytest.mark.usefixtures("outcomes")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_equal_one_rank(folder: Path, layout: str) -> None:
    """After one step the first moment is the clipped gradient times 1 - beta1."""
    for name, expected, found in both(folder, layout, "first-step", 1):
        if name.endswith("/exp_avg"):
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.usefixtures("outcomes")
@pytest.mark.parametrize(("layout", "variant"), CASES)
def test_weights_moments_and_masks_equal_one_rank(folder: Path, layout: str, variant: str) -> None:
    for name, expected, found in both(folder, layout, variant, STEPS):
        if expected.dtype == torch.uint8:
            assert torch.equal(found, expected), f"{name}: masks and ages are decided alike"
        else:  # Adam blows up the rounding of gradients near 0, so single weights may differ more
            assert (found - expected).norm() <= 1e-4 * expected.norm(), name
