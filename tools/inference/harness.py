"""Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) on the exported model."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError, DataError
from pretrain.exit_codes import DONE
from pretrain.outside import printable, read_json

from ..checkpoints.sparse_source import is_sparse
from ..export_hf import main as export_main
from ..extras import missing
from .model import CONFIG

PACKAGE = "lm_eval"
GIVEN = ("--model", "-M", "--model_args", "-a", "--tasks", "-t", "--output_path", "-o")
"""Its options that are given here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this module."""
    parser.add_argument("--lm-eval", metavar="TASKS", help="tasks of lm-evaluation-harness instead of a corpus, a,b,c")
    parser.add_argument(
        "--lm-eval-args", default="", metavar="'ARGS'", help="further options of lm_eval, such as '--limit 100'"
    )


def run(options: argparse.Namespace) -> int:
    """Export the model if it is none of Hugging Face's files yet, ask the harness, and print what it found.

    Returns:
        Exit code.

    Raises:
        DataError: the package is missing, or the harness failed.
        ConfigError: its options clash with those given here.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise DataError(missing("--lm-eval", PACKAGE) or PACKAGE)
    more = shlex.split(options.lm_eval_args)
    if clash := [word for word in more if word.partition("=")[0] in GIVEN]:
        raise ConfigError(f"--lm-eval-args has {clash[0]}, which is given here; leave it out")
    with tempfile.TemporaryDirectory(prefix="lm-eval-") as name:
        folder, out = Path(name) / "export", Path(name) / "results"
        if (options.source / CONFIG).is_file():
            folder = options.source
        else:
            with contextlib.redirect_stdout(sys.stderr):
                code = export_main(_export_arguments(options, folder))
            if code != DONE:
                return code
        results = _ask(folder, out, options, more)
    if options.json:
        print(json.dumps({"model": str(options.source), **results}))
    else:
        print(printable(describe(results)), flush=True)
    return DONE


def _export_arguments(options: argparse.Namespace, folder: Path) -> list[str]:
    given = {"--tokenizer": options.tokenizer, "--family": options.family, "--dtype": options.precision}
    return [str(options.source), str(folder), *(word for key, value in given.items() if value for word in (key, value))]


def _ask(folder: Path, out: Path, options: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    """Run the harness in a process of its own; its words go to stderr."""
    arguments = f"pretrained={folder}" + (f",dtype={_DTYPE[options.precision]}" if options.precision else "")
    device = [] if options.device == "auto" else ["--device", options.device]
    program = ["-c", _WITH_SMET] if is_sparse(folder) else ["-m", PACKAGE]
    command = [
        sys.executable, *program, "--model", "hf", "--model_args", arguments, "--tasks", options.lm_eval,
        "--output_path", str(out), *device, *more,
    ]  # fmt: skip
    code = subprocess.run(command, stdout=sys.stderr.fileno()).returncode
    found = sorted(out.rglob("results*.json"))
    if code or not found:
        raise DataError(f"lm_eval ended with exit code {code}; what it said stands above")
    report = read_json(found[-1])
    return {key: report.get(key) for key in ("results", "versions", "n-samples")}


_WITH_SMET = f"import smet.hf, runpy; runpy.run_module({PACKAGE!r}, run_name='__main__', alter_sys=True)"
"""The harness loads a model by its name, as transformers does once it knows of sparse ones."""
_DTYPE = {"fp32": "float32", "bf16": "bfloat16"}


def describe(results: dict[str, Any]) -> str:
    """A line for each measure of each task."""
    lines = []
    for task, measures in (results["results"] or {}).items():
        for key, value in measures.items():
            measure, _, how = key.partition(",")
            if isinstance(value, (int, float)) and not measure.endswith("_stderr"):
                error = measures.get(f"{measure}_stderr,{how}")
                spread = f" +- {error:.4f}" if isinstance(error, float) else ""
                lines.append(f"{task}: {measure} {value:.4f}{spread}")
    return "\n".join(lines)
