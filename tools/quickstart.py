"""From nothing to a trained sparse LLaMA: corpus, tokenizer, training, resume, results, a sample of its text.

Uses two GPUs, or one, or two CPU processes, and the working folder: data/quickstart and runs/quickstart. What is there
already is used again; to start anew, remove the two. QUICKSTART_TEXT names another folder of Python files to learn from
(default: the standard library).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.command import program, told
from pretrain.config import load_config
from pretrain.errors import UserError
from pretrain.exit_codes import DONE
from pretrain.ports import any_free
from pretrain.screen import on_screen, refuse

from .cores import cores
from .packages import CONFIGS, named, shown

DATA = Path("data/quickstart")
TOKENIZER, CORPUS = DATA / "tokenizer", DATA / "python"
HALF = 150
"""The first of two trainings stops after this step, or half of fewer; the second resumes from its checkpoint."""
PROMPTS = ("def __init__(self", "import ")
"""What the trained model is given to go on with."""
CHATTER = re.compile(r"\[.*\] \[(INFO|WARNING)\] \[(launch|runner|real_accelerator)\.py|\[W.*socket")
"""Lines of DeepSpeed's launcher that say nothing to a newcomer."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program(f"{__package__}.quickstart"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=100 sparsity.density=0.5")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code of the first step that fails, or 0."""
    overrides = build_parser().parse_intermixed_args(arguments).overrides
    try:
        train = load_config(CONFIGS / "quickstart.yaml", overrides).train  # before minutes go into a corpus
    except UserError as error:
        return refuse(error)
    run, half = train.output_dir, train.stop_at or min(HALF, -(-train.steps // 2))
    text = os.environ.get("QUICKSTART_TEXT") or sysconfig.get_path("stdlib")
    _say(f"1/5 corpus and tokenizer: the Python sources in {text}")
    if code := _prepare(text):
        return code
    ranks = 1 if _gpus() == 1 else 2
    _say(f"2/5 training on {ranks} process{'es' if ranks > 1 else ''} until step {half}")
    if code := _train(ranks, [*overrides, f"train.stop_at={half}"]):
        return code
    _say("3/5 resuming from the checkpoint, to the end")
    if code := _train(ranks, [*overrides, "train.stop_at=0"]):
        return code
    _say("4/5 results")
    if code := _tool("plot_run", run):
        return code
    _say("5/5 what it writes")
    if code := _tool("generate", run, *PROMPTS, "--temperature", "0.8", "--max-new-tokens", "48"):
        return code
    print(f"\nto see this run in a browser, as one that trains: {told('watch', run)}", flush=True)
    return DONE


def _say(title: str) -> None:
    print(f"\n== {title}", flush=True)


def _prepare(text: str) -> int:
    """Tokenizer and corpora, unless they are there."""
    given = ["--input", text, "--include", "*.py", "--exclude", "*-packages/*", "--exclude", "*/test/*"]
    given += ["--exclude", "*/tests/*"]
    model = TOKENIZER.with_suffix(".model")
    if model.is_file():
        print(f"using {model}", flush=True)
    elif code := _tool("train_tokenizer", *given, "--vocab-size", "4096", "--output", str(TOKENIZER)):
        return code
    if all(Path(f"{CORPUS}_{part}.idx").is_file() for part in ("train", "validation")):
        print(f"using {CORPUS}_train.bin and {CORPUS}_validation.bin", flush=True)
        return DONE
    return _tool(
        "preprocess", *given, "--tokenizer", str(model), "--validation-fraction", "0.05", "--output", str(CORPUS)
    )


def _tool(name: str, *arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", named(f"tools.{name}"), *arguments]).returncode


def _gpus() -> int:
    """GPUs that torch sees; asked of another process, so that this one does not keep one busy."""
    count = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    return int(subprocess.run([sys.executable, "-c", count], check=True, capture_output=True, text=True).stdout)


def _train(ranks: int, overrides: list[str]) -> int:
    """One training on ``ranks`` processes of this machine; its exit code."""
    config = str(shown(CONFIGS / "quickstart.yaml"))
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port"]
    command += [str(any_free()), "--module", "pretrain", config, *overrides]
    threads = str(-(-cores() // ranks))
    with subprocess.Popen(
        command, env={"OMP_NUM_THREADS": threads, **os.environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip

        def pass_on(number: int, _: Any) -> None:
            if number == signal.SIGTERM:  # Ctrl-C has reached the training already
                process.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for line in process.stdout or ():
                if not CHATTER.match(line):
                    print(line, end="", flush=True)
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(on_screen(main))
