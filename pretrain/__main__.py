"""``python -m pretrain CONFIG.yaml key=value ...``, alone or under any launcher."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from pretrain.command import program, remember
from pretrain.errors import UserError, problems_of
from pretrain.exit_codes import DONE, FAILED, STOPPED, USER
from pretrain.leaving import leave_with
from pretrain.numbers import count
from pretrain.screen import outlive_screen, refuse
from pretrain.stopping import REQUEST

if TYPE_CHECKING:
    from pretrain.config import RunConfig
    from pretrain.environment import Place
    from pretrain.layout import Layout


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line to its parts; unknown options end with the usage and exit code 2."""
    parser = argparse.ArgumentParser(
        prog=program("pretrain"),
        description="Pre-train a sparse LLaMA. Start it alone (one process), or on many with "
        "`deepspeed --module pretrain CONFIG.yaml ...`.",
    )
    parser.add_argument("config", help="run file (YAML), such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=100 sparsity.density=0.1")
    parser.add_argument(
        "--dry-run", action="store_true", help="build one rank without memory or data, check it and print its plan"
    )
    parser.add_argument("--rank", type=int, help="which rank a dry run builds; default 0")
    parser.add_argument(
        "--world-size",
        type=count,
        metavar="N",
        help="ranks of the dry run; default tensor x pipeline degrees",
    )
    parser.add_argument("--json", action="store_true", help="print a dry run's plan as JSON")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher may add it
    options = parser.parse_intermixed_args(arguments)
    given = {"--rank": options.rank, "--world-size": options.world_size, "--json": options.json or None}
    if words := [word for word, value in given.items() if value is not None and not options.dry_run]:
        hint = "" if words == ["--json"] else "; a launcher starts several ranks, such as smet launch"
        parser.error(f"{', '.join(words)} without --dry-run{hint}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run; returns one of ``pretrain.exit_codes``."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    remember(sys.argv[1:] if arguments is None else arguments)
    if options.dry_run:
        return _told(lambda: _dry_run(options), is_first=lambda: True)
    REQUEST.install()
    outlive_screen()
    start = Start(options.config, options.overrides)
    try:
        return _told(start.run, start.is_first)
    except Exception:
        rank = os.environ.get("RANK", "0")
        text = traceback.format_exc()
        print("".join(f"[rank {rank}] {line}\n" for line in text.splitlines()), file=sys.stderr, flush=True)
        os._exit(FAILED)  # other ranks may wait for us in a collective: do not wait for them in turn
    finally:
        REQUEST.begin()


def _told(work: Callable[[], int], is_first: Callable[[], bool]) -> int:
    """Exit code of ``work``; what the user has to mend is printed where ``is_first``."""
    try:
        return work()
    except UserError as error:
        if is_first():
            refuse(error)
        return USER


class Start:
    """From variables and settings to the run. Mistakes end before torch is imported, which takes seconds."""

    def __init__(self, config: str, overrides: list[str]):
        self.config, self.overrides = config, overrides
        self.placed = self.joined = False

    def is_first(self) -> bool:
        """Whether errors are printed here: once the ranks have joined they are the same on all of them; before, hosts
        may differ; a process that does not know its place speaks for itself."""
        return not self.placed or os.environ.get("RANK" if self.joined else "LOCAL_RANK", "0") in ("0", "")

    def run(self) -> int:
        """Returns ``DONE`` or ``STOPPED``."""
        from pretrain.config import load_config
        from pretrain.environment import adopt_environment, check_world

        _quiet()
        place = adopt_environment()
        self.placed = True
        if place.note:
            print(f"note: {place.note}", file=sys.stderr, flush=True)
        config = load_config(self.config, self.overrides, world_size=place.world)
        check_world(place.world, config)
        layout = self._layout(place, config)
        from pretrain.run import run

        trainer = run(config, layout, REQUEST)
        return STOPPED if trainer.stopped_early else DONE

    def _layout(self, place: Place, config: RunConfig) -> Layout:
        from pretrain.meeting import meet
        from pretrain.run_folder import require_writable
        from pretrain.writers import require_installed

        if _has_joined():
            from pretrain.startup import start

            layout = start(config)
            self.joined = True
            return layout
        meeting = meet(place, config, REQUEST)
        try:
            if place.rank == 0:
                require_writable(config.train.output_dir)
                require_installed(config.logging.writers)
            from pretrain.startup import start

            meeting.joining()
            layout = start(config)  # chooses the device before anything imports DeepSpeed, which else guesses one
        except UserError as error:
            meeting.fail(problems_of(error))
            raise
        meeting.joined()
        self.joined = True
        meeting.compare(layout)
        return layout


def _has_joined() -> bool:
    """Whether this process is in a process group already, as those of tests are."""
    if "torch.distributed" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_initialized()


def _dry_run(options: argparse.Namespace) -> int:
    from pretrain.config import load_config
    from pretrain.dry_run import dry_run

    config = load_config(options.config, options.overrides, world_size=options.world_size)
    print(dry_run(config, options.rank or 0, options.world_size, options.json), flush=True)
    return DONE


def _quiet() -> None:
    """Keep libraries' start-up chatter off the screen; warnings and errors still show."""
    import logging
    import warnings

    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    # Our tests are what makes this optimizer a tested one.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "untested optimizer" not in record.getMessage())
    warnings.filterwarnings("ignore", message="c10d::.*autograd kernel was not registered")  # pipelines' own sends
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*|deepspeed.*")


if __name__ == "__main__":
    leave_with(main)
