"""Corpus tools start many processes, and none of them pays for torch: seconds and 200 MB each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.tools.texts import ROOT, make_documents, write_jsonl

PROGRAM = """
import importlib, pkgutil, sys
import tools.corpus
for module in pkgutil.iter_modules(tools.corpus.__path__):
    importlib.import_module(f"tools.corpus.{module.name}")
import tools.dataset, tools.preprocess, tools.train_tokenizer
assert "torch" not in sys.modules, "by an import"
text, model, output = sys.argv[1:]
arguments = ["--input", text, "--tokenizer", model, "--output", output, "--deduplicate", "--workers", "1"]
assert tools.preprocess.main(arguments) == 0  # one worker: its work is done in this process
assert tools.dataset.main(["verify", output]) == 0
assert tools.dataset.main(["inspect", output, "--tokenizer", model, "--sample", "0", "--seq-length", "8"]) == 0
assert "torch" not in sys.modules, "by work"
"""


def test_no_corpus_tool_imports_torch(tmp_path: Path, model: str) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", make_documents(50))
    command = [sys.executable, "-c", PROGRAM, str(text), model, str(tmp_path / "corpus")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
