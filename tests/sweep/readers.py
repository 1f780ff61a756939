"""Reads an artifact as a run would, and prints what it amounts to: two whole readings print the same."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from pretrain.config import load_config
from pretrain.data.corpus import open_corpus
from pretrain.errors import UserError


def main(argv: list[str]) -> int:
    """``corpus PREFIX``, ``export CHECKPOINTS``, ``resume RUN_FILE`` or ``config RUN_FILE``; exit codes as a tool's."""
    try:
        code = {"corpus": corpus, "export": export, "resume": resume, "config": config}[argv[0]](argv[1])
    except UserError as error:
        for problem in getattr(error, "problems", [str(error)]):
            print(f"error: {problem}", file=sys.stderr)
        return 2
    return code


def corpus(prefix: str) -> int:
    """Every sample of one epoch."""
    opened = open_corpus(prefix, 32, 0)
    digest = hashlib.sha256()
    for number in range(opened.num_samples):
        digest.update(opened.sample(number).tobytes())
    print("reading", digest.hexdigest())
    return 0


def export(run: str) -> int:
    """The dense weights of the newest checkpoint that is whole, or that the error names."""
    from tools import export_hf

    if code := export_hf.main([run, "out", "--tokenizer", "none"]):
        return code
    files = sorted(Path("out").glob("*.safetensors"))
    print("reading", hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
    return 0


def resume(run_file: str) -> int:
    """The losses of the two steps after the last one."""
    from pretrain.__main__ import main as pretrain

    if code := pretrain([run_file, "train.steps=8", "evaluation.interval=0", "checkpoint.interval=0"]):
        return code
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()[-2:]]
    print("reading", [(row["step"], row["loss"]) for row in rows])
    return 0


def config(run_file: str) -> int:
    """The settings."""
    print("reading", load_config(run_file, []))
    return 0
