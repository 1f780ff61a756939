"""Command line: ``python -m tools.ablate [MATRIX]``, and ``python -m tools.ablate render RESULTS.json PAGE.md``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from pretrain.command import program, told
from pretrain.errors import DataError, UserError
from pretrain.files import write_atomically
from pretrain.paths import path_argument
from pretrain.screen import on_screen, refuse

from ..cores import cores
from ..locks import claim
from ..packages import CONFIGS, shown
from . import collect, known, pool, text
from .matrix import Matrix, load_matrix

DEFAULT = shown(CONFIGS / "ablations" / "llama.yaml")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all cells are done, 1 some failed, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _render(arguments[1:]) if arguments[:1] == ["render"] else _run(arguments)
    except UserError as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The options of a run."""
    made = argparse.ArgumentParser(
        prog=program(str(__package__)),
        description="Run a matrix of methods x densities x seeds x sizes, each cell an ordinary run of its own, and "
        "write results.json, a page and its figures. Started again, it goes on: finished cells are not run twice. "
        f"`{program(str(__package__), 'render')} RESULTS.json PAGE.md` makes the page from the JSON.",
    )
    made.add_argument(
        "matrix", nargs="?", type=path_argument, default=DEFAULT, help=f"matrix file (default: {DEFAULT})"
    )
    made.add_argument(
        "--quick", action="store_true",
        help="take MATRIX-quick.yaml, or of MATRIX the questions that are marked quick: two cores, under an hour",
    )  # fmt: skip
    made.add_argument(
        "--question", action="append", default=[], metavar="NAME", help="only this question of MATRIX; may be repeated"
    )
    made.add_argument("--out", type=path_argument, help="folder of cells and results (default: runs/ablation-NAME)")
    made.add_argument("--jobs", type=int, default=cores(), help="cells at a time (default: cores, here %(default)s)")
    made.add_argument(
        "--launcher", default="", metavar="COMMAND",
        help="what starts a cell on several ranks, such as 'deepspeed --num_gpus 8 --module'",
    )  # fmt: skip
    made.add_argument(
        "--known", type=path_argument, metavar="RESULTS.json",
        help="take from there what was run with the same settings and text, instead of running it again",
    )  # fmt: skip
    made.add_argument("--list", action="store_true", help="list the cells and the commands that run them; run nothing")
    made.add_argument("--collect", action="store_true", help="write the results of what is finished; run nothing")
    made.add_argument("--json", action="store_true", help="print a summary (or the list) as JSON")
    return made


def _run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.jobs < 1:
        raise DataError(f"--jobs is {options.jobs}, expected 1 or more")
    if options.known and (options.list or options.collect):
        raise DataError("--known puts results into the folder of the run, and --list and --collect only look at it")
    path = options.matrix.with_name(f"{options.matrix.stem}-quick.yaml") if options.quick else options.matrix
    quick = options.quick and not path.exists() and options.matrix.exists()
    path = options.matrix if quick else path
    out = options.out or Path("runs") / f"ablation-{path.stem}"

    def load() -> Matrix:
        return load_matrix(path, pool.results_in(out), options.question, quick)

    matrix = load()
    if options.list:
        _list(matrix, out, options)
        return 0
    failures: list[pool.Failure] = []
    if not options.collect:
        if matrix.content.get("text"):
            text.prepare(matrix.content["text"])
        out.mkdir(parents=True, exist_ok=True)
        busy = f"{out} is in use by another {told('ablate')}; wait for it, or give --out another folder"
        with claim(out / "lock", busy):
            if options.known:
                matrix = known.plant(options.known, load, out)
            failures = pool.run(matrix.cells, out, options.jobs, options.launcher)
            while matrix.waiting and not failures:  # learning rates are known now
                before, matrix = matrix, load()
                if matrix.cells == before.cells:
                    raise DataError(
                        f"{out} holds no result at one of tune.rates for {before.waiting[0]}, though its cells are "
                        "done; remove their folders to run them anew"
                    )
                failures = pool.run(matrix.cells, out, options.jobs, options.launcher)
    said = _publish(matrix, path, out, options, failures)
    said["failed"] = [vars(failure) for failure in failures]
    if options.json:
        print(json.dumps(said))
    else:
        spent = said["cpu_seconds"] / 60
        print(f"{said['done']} of {said['cells']} cells done, {spent:.1f} core minutes; {said['page'] or 'no page'}")
    for failure in failures:
        print(f"failed: {failure.name}: {failure.message}", file=sys.stderr)
    return 1 if failures else 0


def _publish(
    matrix: Matrix, path: Path, out: Path, options: argparse.Namespace, failures: list[pool.Failure]
) -> dict[str, Any]:
    command = "python -m tools.ablate" + (f" {options.matrix}" if options.matrix != DEFAULT else "")
    command += " --quick" if options.quick else "".join(f" --question {name}" for name in options.question)
    command += f" --known {options.known}" if options.known else ""
    results = collect.results(matrix, path, out, command, [] if options.quick else options.question)
    done, target, document = len(results["cells"]), out / "results.json", out / "results.md"
    if done:
        write_atomically(target, collect.to_text(results))
        from . import page

        page.write(results, document)
    elif not failures:
        raise DataError(f"no cell in {out} is finished, so there is nothing to report; run it without --collect")
    return {
        "results": str(target) if done else None, "page": str(document) if done else None, "cells": len(matrix.cells),
        "done": done, "cpu_seconds": results["cpu_seconds"],
    }  # fmt: skip


def _list(matrix: Matrix, out: Path, options: argparse.Namespace) -> None:
    rows = [
        {**cell.labels(), "done": pool.finished(out / cell.name, cell),
         "command": shlex.join(pool.command(out / cell.name, options.launcher))}
        for cell in matrix.cells
    ]  # fmt: skip
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{'done' if row['done'] else 'open'}  {row['name']}")
    for name in matrix.waiting:
        print(f"later {name}: its learning rate is not tuned yet")
    each = f"; each runs as {rows[0]['command']}" if rows else ""
    print(f"{len(rows)} cells, {sum(row['done'] for row in rows)} done{each}")


def _render(arguments: list[str]) -> int:
    from . import page

    made = argparse.ArgumentParser(prog=program(str(__package__), "render"), description=page.write.__doc__)
    made.add_argument("results", type=path_argument, help="results.json of a matrix")
    made.add_argument("page", type=path_argument, help="Markdown file to write; figures go to images/ beside it")
    made.add_argument("--json", action="store_true", help="print {results, page, images}")
    options = made.parse_args(arguments)
    if not options.page.absolute().parent.is_dir():
        raise DataError(f"{options.page.absolute().parent} does not exist; create the page's folder first")
    images = page.write(collect.read(options.results), options.page)
    said = {"results": str(options.results), "page": str(options.page), "images": [str(image) for image in images]}
    print(json.dumps(said) if options.json else f"{options.page} and {len(images)} figures from {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(on_screen(main))
