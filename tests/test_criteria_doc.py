"""docs/criteria.md lists the tables as they are, and its functions train by the names of its run file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

import smet
from smet import criteria
from smet.criteria.needs import AT_START, AT_UPDATE
from tests.pages import ROOT, blocks

PAGE = "docs/criteria.md"


def test_the_page_lists_every_entry_and_what_it_needs() -> None:
    setting, listed = "", {}
    for line in (ROOT / PAGE).read_text().splitlines():
        if found := re.fullmatch(r"\| (?:`(\w+)`)? ?\| `([\w-]+)` \| .* \| (.*) ?\|", line):
            setting = found[1] or setting
            listed[setting, found[2]] = set(re.findall(r"`(\w+)`", found[3]))
    tables = {"prune": criteria.PRUNE, "growth": criteria.GROW, "prune_schedule": criteria.SCHEDULES,
              "mask_init": criteria.MASKS}  # fmt: skip
    assert listed == {
        (name, entry): criteria.declared(function)
        for name, table in tables.items()
        for entry, function in table.items()
    }
    needs = set(re.findall(r"^\| `(\w+)`", (ROOT / PAGE).read_text(), re.M))
    assert needs >= AT_UPDATE.keys() | AT_START.keys() - {"flow"}


def test_its_functions_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, own = blocks(PAGE, "python")
    (tmp_path / "my_criteria.py").write_text(own)
    monkeypatch.syspath_prepend(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(first, PAGE, "exec"), scope)
    models = []
    for text in blocks(PAGE, "yaml"):
        model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
        smet.sparsify(model, **yaml.safe_load(text)["sparsity"], update_interval=5, stop_fraction=1.0, quiet=True)
        models.append(model)
    for trained, updates in ((models[0], 4), (models[1], 4), (scope["model"], 3)):
        optimizer = smet.AdamW(trained, lr=1e-3)  # type: ignore[arg-type]
        run = smet.attach(optimizer, 20)
        for _ in range(20):
            trained(torch.randn(4, 16)).sum().backward()  # type: ignore[operator]
            optimizer.step()
            optimizer.zero_grad()
        assert run.updates_done == updates and run.last_report is not None
        assert trained is models[0] or run.last_report.grown > 0
    assert [layer.open_tiles for layer in smet.sparse_layers(models[0]).values()] == [102, 51]
