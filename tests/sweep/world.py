"""One whole, small input of every kind: what the sweep damages copies of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.pretrain.runs import VOCABULARY, settings, write_corpus
from tests.sweep.pool import ROOT
from tests.tools.ablate import matrices
from tests.tools.texts import make_documents, write_jsonl

PIECES = 384
"""Of the tokenizer."""


def build(folder: Path) -> Path:
    """Make text, tokenizer, corpora, a run with two checkpoints, an export, a matrix and a result in ``folder``."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "text.jsonl", make_documents(120, seed=1))
    (folder / "more").mkdir()
    write_jsonl(folder / "more" / "a.jsonl", make_documents(20, seed=2))
    (folder / "more" / "b.txt").write_text("\n".join(make_documents(5, seed=3)))
    _tool("tools.train_tokenizer", "--input", "text.jsonl", "--vocab-size", str(PIECES), "--pad-to-multiple", "128",
          "--character-coverage", "1.0", "--output", "tok", folder=folder)  # fmt: skip
    _tool("tools.preprocess", "--input", "text.jsonl", "--tokenizer", "tok.model", "--workers", "1",
          "--output", "corpus", folder=folder)  # fmt: skip
    write_corpus(folder / "noise", tokens=4000)
    shutil.copy(folder / "tok.model", folder / "run-tok.model")
    _run(folder)
    _tool("tools.export_hf", "run", "export", "--tokenizer", "none", folder=folder)
    _tool("tools.export_hf", "run", "sparse", "--tokenizer", "none", "--sparse", folder=folder)
    (folder / "matrix").mkdir()
    shutil.copy(matrices.write(folder / "matrix"), folder / "tiny.yaml")
    shutil.copy(ROOT / "docs" / "performance.json", folder / "performance.json")
    shutil.copy(ROOT / "docs" / "results-spikes.json", folder / "results.json")
    shutil.copy(ROOT / "docs" / "layouts.md", folder / "layouts.md")
    (folder / "hosts").write_text("# two machines\nalpha slots=2\nbeta slots=2\n")
    return folder


def _run(folder: Path) -> None:
    """Six steps of a tiny model, saved after steps 3 and 6; paths are relative, so that a copy is a run of its own."""
    given = settings("noise", Path("run"), train__steps=6, checkpoint__interval=3, evaluation__interval=3)
    assert given["model"]["vocab_size"] == VOCABULARY < PIECES
    given["model"]["vocab_size"] = PIECES  # so that it can be given text, and write some
    (folder / "run.yaml").write_text(yaml.safe_dump(given))
    _tool("pretrain", "run.yaml", folder=folder)


def _tool(module: str, *arguments: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, json.dumps([module, *arguments]) + done.stdout + done.stderr
