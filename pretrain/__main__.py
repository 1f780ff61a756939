"""``python -m pretrain CONFIG.yaml key=value ...``, alone or under any launcher."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from pretrain.errors import UserError
from pretrain.exit_codes import DONE, FAILED, STOPPED, USER
from pretrain.leaving import leave_with
from pretrain.outside import printable
from pretrain.stopping import REQUEST


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line to its parts; unknown options end with the usage and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain",
        description="Pre-train a sparse LLaMA. Start it alone (one process), or on many with "
        "`deepspeed --module pretrain CONFIG.yaml ...`.",
    )
    parser.add_argument("config", help="run file (YAML), such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=100 sparsity.density=0.1")
    parser.add_argument(
        "--dry-run", action="store_true", help="build one rank without memory or data, check it and print its plan"
    )
    parser.add_argument("--rank", type=int, default=0, help="which rank a dry run builds; default 0")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="ranks of the dry run; default parallel.tensor x parallel.pipeline"
    )
    parser.add_argument("--json", action="store_true", help="print a dry run's plan as JSON")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher may add it
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run; returns one of ``pretrain.exit_codes``."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    agreed = False
    if not options.dry_run:
        REQUEST.install()
    try:
        from pretrain.config import load_config
        from pretrain.startup import adopt_environment, start

        _quiet()
        if options.dry_run:
            return _dry_run(options)
        adopt_environment()
        config = load_config(options.config, options.overrides, world_size=int(os.environ["WORLD_SIZE"]))
        layout = start(config)  # chooses the device before anything imports DeepSpeed, which else guesses one
        agreed = True
        from pretrain.run import run

        trainer = run(config, layout, REQUEST)
    except UserError as error:
        # From here on errors are the same on all ranks; before, ranks cannot talk, and hosts may differ.
        if os.environ.get("RANK" if agreed else "LOCAL_RANK", "0") == "0":
            for problem in getattr(error, "problems", [str(error)]):
                print(f"error: {printable(problem)}", file=sys.stderr, flush=True)
        return USER
    except Exception:
        rank = os.environ.get("RANK", "0")
        text = traceback.format_exc()
        print("".join(f"[rank {rank}] {line}\n" for line in text.splitlines()), file=sys.stderr, flush=True)
        os._exit(FAILED)  # other ranks may wait for us in a collective: do not wait for them in turn
    return STOPPED if trainer.stopped_early else DONE


def _dry_run(options: argparse.Namespace) -> int:
    from pretrain.config import load_config
    from pretrain.dry_run import dry_run

    config = load_config(options.config, options.overrides, world_size=options.world_size)
    print(dry_run(config, options.rank, options.world_size, options.json), flush=True)
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
