"""Everything on docs/sparse-format.md, on a small model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.pages import blocks, commands, link_checkout, run
from tests.tools.checkpoints.models import make_hf
from tools import import_hf

PAGE = "docs/sparse-format.md"


@pytest.mark.slow
def test_every_command_and_example_works_in_order(tmp_path: Path, model: str) -> None:
    make_hf(tmp_path / "model", vocab_size=512)
    shutil.copy(model, tmp_path / "model" / "tokenizer.model")
    run_folder = tmp_path / "runs" / "quickstart"
    run_folder.parent.mkdir()
    assert import_hf.main([str(tmp_path / "model"), str(run_folder), "--density", "0.25"]) == 0
    link_checkout(tmp_path)
    (command,) = commands(PAGE)
    run(["bash", "-c", command], tmp_path)
    *steps, reader = blocks(PAGE, "python")
    check = """
for place in ("exported/sparse", "copied", "plain"):
    held = read(place)
    assert held.keys() == plain.state_dict().keys()
    assert all((held[name] == weight.numpy()).all() for name, weight in plain.state_dict().items()), place
assert run.updates_done == 0 and len(smet.sparse_layers(model)) == 14
assert tokenizer("def main(")["input_ids"]
smet.sparsify(plain, density=0.25, mask_init="magnitude")
"""
    run([sys.executable, "-c", "\n".join(["import smet", *steps, reader, check])], tmp_path)
