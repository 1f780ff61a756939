"""Ranks that decide together: agreement with one rank that differs, and errors that only one rank sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pretrain.data.indexed import tokens_path
from pretrain.data.packed import TokenCorpus
from pretrain.errors import CheckpointError, ConfigError, DataError, UserError
from pretrain.layout import Coordinates, Layout
from tests.distributed import run_ranks
from tests.pretrain.attempts import launch, write_run_file
from tests.pretrain.runs import write_corpus

RANKS = 3


def layout() -> Layout:
    rank = dist.get_rank()
    group = dist.new_group(list(range(RANKS)))
    return Layout(RANKS, rank, RANKS, rank, torch.device("cpu"), group, dist.new_group(list(range(RANKS))))


def fail_on(ranks: tuple[int, ...], error: type[UserError]) -> int:
    """This rank's own value, or its own error."""
    rank = dist.get_rank()
    if rank in ranks:
        raise error(f"bad luck on {rank}")
    return 10 * rank


def outcome(layout: Layout, ranks: tuple[int, ...], error: type[UserError]) -> Any:
    try:
        return layout.agree(lambda: fail_on(ranks, error))
    except UserError as caught:
        return type(caught).__name__, str(caught)


def decide() -> dict[str, Any]:
    """Every collective of a layout, with ranks that differ."""
    made = layout()
    rank = made.rank
    found: dict[str, Any] = {
        "none": outcome(made, (), DataError),
        "one": outcome(made, (1,), DataError),
        "two": outcome(made, (1, 2), CheckpointError),
        "all": outcome(made, (0, 1, 2), ConfigError),
        "afterwards": outcome(made, (), DataError),
        "any": [made.any(rank == other) for other in range(RANKS + 1)],
        "mean": made.mean(torch.tensor(float(rank), dtype=torch.bfloat16)),
        "objects": made.gather_objects({"rank": rank}),
        "main": made.is_main,
    }
    made.barrier()
    return found


def test_ranks_decide_alike_whichever_differs() -> None:
    by_rank = run_ranks(decide, RANKS)
    for rank, found in enumerate(by_rank):
        assert found["none"] == found["afterwards"] == 10 * rank
        assert found["one"] == ("DataError", "rank 1 of 3: bad luck on 1")
        assert found["two"] == ("CheckpointError", "rank 1 of 3: bad luck on 1")
        assert found["all"] == ("ConfigError", "bad luck on 0"), "what all ranks see is no rank's own trouble"
        assert found["any"] == [True, True, True, False]
        assert found["mean"] == 1.0
        assert found["objects"] == [{"rank": other} for other in range(RANKS)]
        assert found["main"] == (rank == 0)


def test_one_process_needs_no_groups() -> None:
    alone = Layout(1, 0, 1, 0, torch.device("cpu"), None, None)
    assert alone.any(True) and not alone.any(False)
    assert alone.mean(torch.tensor(2.5)) == 2.5
    assert alone.gather_objects("x") == ["x"]
    alone.barrier()
    assert alone.agree(lambda: 7) == 7
    with pytest.raises(DataError, match="^as it is$"):
        alone.agree(lambda: (_ for _ in ()).throw(DataError("as it is")))


def test_a_bug_is_not_taken_for_a_decision() -> None:
    alone = Layout(1, 0, 1, 0, torch.device("cpu"), None, None)
    with pytest.raises(ZeroDivisionError):
        alone.agree(lambda: 1 // 0)


def test_coordinates_are_a_bijection_with_tensor_neighbours() -> None:
    data, tensor, stages = 3, 2, 4
    places = [Coordinates.of(rank, data, tensor) for rank in range(data * tensor * stages)]
    assert len({(place.data, place.tensor, place.stage) for place in places}) == len(places)
    assert [place.tensor for place in places[:4]] == [0, 1, 0, 1]
    assert [place.stage for place in places] == [rank // (data * tensor) for rank in range(len(places))]


def corpus_with_a_bad_id(prefix: Path, rank: int) -> tuple[str, int]:
    """A corpus with one id that no model here knows, in a window that ``rank`` of 2 reads; and in which step.

    Each step takes 4 samples in micro-batches of 2: rank 0 reads the first two of them, rank 1 the others.
    """
    write_corpus(prefix, tokens=2000)
    number = next(n for n in range(6, 100) if n % 4 // 2 == rank)
    _, window = TokenCorpus(prefix, 16, seed=0).order.locate(number)
    tokens = np.fromfile(tokens_path(prefix), np.uint16)
    tokens[window * 16 + 8] = 60_000
    tokens.tofile(tokens_path(prefix))
    return str(prefix), number // 4


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_in_mid_run_ends_all_with_2_and_names_it(tmp_path: Path, rank: int) -> None:
    """The id stands in a sample that only one rank reads; the other would wait for it in a collective for ever."""
    corpus, step = corpus_with_a_bad_id(tmp_path / "corpus", rank)
    file = write_run_file(
        tmp_path / "run.yaml", corpus, tmp_path / "run", train__global_batch_size=4, train__micro_batch_size=2,
        evaluation__interval=0, data__validation=[],
    )  # fmt: skip
    first, second = launch(2, [file])
    assert (first.returncode, second.returncode) == (2, 2), (first.stderr, second.stderr)
    # Where a machine is slow, ranks say whom they wait for before.
    (line,) = [line for line in first.stderr.splitlines() if "error: " in line]
    assert line.startswith(f"error: rank {rank} of 2: corpus {corpus} holds token ids from ")
    assert "to 60000" in line and "error: " not in second.stderr
    done = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(done) == step, "the steps before it are recorded"
