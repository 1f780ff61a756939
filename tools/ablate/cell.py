"""``python -m tools.ablate.cell FOLDER``: one cell of the matrix, alone or under any launcher.

``FOLDER/cell.json`` says what to run; the run's own folder is ``FOLDER/run``. ``FOLDER/result.json`` is written
when all is done, so its presence means that the cell is finished. Started again, a cell that was stopped goes
on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.command import program, told
from pretrain.errors import DataError, UserError
from pretrain.exit_codes import DONE, STOPPED
from pretrain.leaving import leave_with
from pretrain.paths import path_argument
from pretrain.screen import refuse
from pretrain.stopping import REQUEST

if TYPE_CHECKING:
    from pretrain.config import RunConfig
    from pretrain.layout import Layout

SPEC, RESULT, RUN = "cell.json", "result.json", "run"


def main(arguments: list[str] | None = None) -> int:
    """Returns one of ``pretrain.exit_codes``."""
    parser = argparse.ArgumentParser(prog=program(f"{__package__}.cell"), description=__doc__)
    parser.add_argument("folder", type=path_argument, help="the cell's folder, as smet ablate makes it")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher may add it
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    REQUEST.install()
    try:
        result = run(options.folder)
    except UserError as error:
        return refuse(error)
    if result is None:
        return STOPPED
    if options.json and os.environ.get("RANK", "0") == "0":
        print(json.dumps(result))
    return DONE


def run(folder: Path) -> dict[str, Any] | None:
    """Train the cell in ``folder`` and write its result; None if it was asked to stop before its end.

    Raises:
        UserError: as an ordinary run.
    """
    from pretrain.environment import adopt_environment
    from pretrain.startup import start

    begin = time.perf_counter()
    spec = read_spec(folder)
    if "plain" not in spec:
        adopt_environment()
    from pretrain.config import config_from_dict
    from pretrain.config.load import merge, named_family

    config = config_from_dict(
        merge(spec["settings"], {"train": {"output_dir": str(folder / RUN)}}), (named_family(spec["settings"]),)
    )
    from pretrain.checkpoint.manifest import git_revision
    from pretrain.files import write_atomically

    from . import text

    if "plain" in spec:
        from . import plain

        layout = plain.alone(config)
        found = plain.run(config, spec["plain"].get("peer"), layout, spec["plain"].get("then_dense"))
    else:
        layout = start(config)
        found = _by_the_program(folder, spec, config, layout)
    if found is None:
        return None
    result = {
        **spec["labels"],
        "revision": git_revision(),
        **found,
        "wall_seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(sum(layout.gather_objects(time.process_time())), 1),
        "ranks": layout.world_size,
        "text": text.identity(config.data),
        "device": layout.device.type,
    }
    if layout.is_main:
        write_atomically(folder / RESULT, json.dumps(result) + "\n")
    return result


def _by_the_program(folder: Path, spec: dict[str, Any], config: RunConfig, layout: Layout) -> dict[str, Any] | None:
    from pretrain.run import prepared

    from . import branch, probe
    from .summary import summarize

    with prepared(config, layout, REQUEST) as trainer:
        if spec["kind"] == "branches":
            branch.attach(trainer, spec["measure"], folder / "branches.jsonl")
        elif spec["measure"]:
            probe.attach(trainer, spec["measure"], folder / "probe.jsonl")
        trainer.fit()
    return None if trainer.stopped_early else summarize(folder, spec)


def read_spec(folder: Path) -> dict[str, Any]:
    """What the cell is.

    Raises:
        DataError: there is no cell in ``folder``.
    """
    try:
        spec: dict[str, Any] = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / SPEC} cannot be read ({error}); {told('ablate')} writes it") from None
    return spec


if __name__ == "__main__":
    leave_with(main)
