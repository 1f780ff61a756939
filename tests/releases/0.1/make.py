"""Writes what is stored beside this file. Runs in a checkout of the release, never in today's; see README.md there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pretrain.checkpoint.content import vectors_of
from pretrain.config import config_from_dict, load_config
from pretrain.run import run
from pretrain.startup import start
from smet import LocalStore, MaskBank, Remedies, SmetAdamW, SmetConfig, TopologyController, parameter_groups, sparsify
from smet.linear import sparse_layers
from tests.distributed import run_ranks
from tests.pretrain.runs import outcome, settings, write_corpus
from tools import export_hf, inspect_checkpoint

SAVED = 9
"""Step of the stored checkpoints: behind the topology updates of steps 4 and 8."""

MODEL = {
    "vocab_size": 98,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
RUNS: dict[str, dict[str, Any]] = {
    "tensor2": {"parallel": {"tensor": 2, "zero_stage": 1}},
    "zero3": {
        "parallel": {"zero_stage": 3},
        "model": {**MODEL, "tie_word_embeddings": True},
        "sparsity__density": 0.25,
        "sparsity__block": [1, 4],
    },
    "pipeline2": {
        "parallel": {"pipeline": 2, "zero_stage": 1},
        "sparsity__growth": "gradient",
        "sparsity__distribution": "erk",
    },
}
"""Each of two ranks."""

INSPECTED = ("step", "parameters", "parameters_stored", "density", "ages", "bytes")


def digest(tensor: Tensor) -> str:
    """sha256 of the bytes of a tensor, half of it."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:32]


def job(name: str) -> dict[str, Any]:
    changes = {key: value for key, value in RUNS[name].items() if "__" in key}
    changes |= {"sparsity__prune_start": 0.3, "sparsity__prune_schedule": "constant"}
    given = settings("corpus", Path(name), train__stop_at=SAVED, **changes)
    return {**given, "model": MODEL, **{key: value for key, value in RUNS[name].items() if "__" not in key}}


def train(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train to the step that is saved, then a copy of the run to its end; what this rank holds at the first."""
    os.chdir(folder)
    name = given["train"]["output_dir"]
    config = config_from_dict(given)
    layout = start(config)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = run(config, layout)
        if layout.is_main:
            shutil.copytree(name, f"{name}-whole")
        layout.barrier()
        corpus, first, rows = trainer.loader.corpus, trainer.consumed_samples, config.train.global_batch_size
        vectors = vectors_of(trainer.engine, trainer.store, trainer.bank, layout)
        found = {
            "pieces": {key: (v.start, v.numel(), v.local.detach().clone()) for key, v in vectors.items()},
            "masks": trainer.topology.mask_digest(),
            "topology": trainer.topology.state_dict(),
            "consumed_samples": trainer.consumed_samples,
            "samples": [digest(torch.as_tensor(corpus.sample(first + i))) for i in range(rows)],
        }
        given["train"] |= {"output_dir": f"{name}-whole", "stop_at": 0}
        run(config_from_dict(given), layout)
    return found


def put_together(ranks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Length, dtype and digest of every logical vector, from what the ranks held."""
    whole: dict[str, Tensor] = {}
    for rank in ranks:
        for name, (first, total, local) in rank["pieces"].items():
            vector = whole.setdefault(name, torch.zeros(total, dtype=local.dtype))
            vector[first : first + local.numel()] = local
    return {name: [v.numel(), str(v.dtype).removeprefix("torch."), digest(v)] for name, v in sorted(whole.items())}


def facts_of(name: str, folder: Path) -> dict[str, Any]:
    """Train a run with two ranks, and say everything of it that has to come back."""
    ranks = run_ranks(train, 2, job(name), str(folder), timeout=280)
    common = {key: ranks[0][key] for key in ("masks", "topology", "consumed_samples", "samples")}
    assert all(rank["topology"] == common["topology"] for rank in ranks)
    checkpoint = folder / name / "checkpoints" / f"step-{SAVED:08d}"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert inspect_checkpoint.main([str(checkpoint), "--json"]) == 0
        inspected = json.loads(told.getvalue())
        assert export_hf.main([str(checkpoint), str(folder / "exported"), "--overwrite", "--tokenizer", "none"]) == 0
    files = [load_file(folder / "exported" / name) for name in ("model.safetensors", "masks.safetensors")]
    exported = {key: digest(value) for file in files for key, value in sorted(file.items())}
    state = json.loads((checkpoint / "state.json").read_text())
    end = outcome(folder / f"{name}-whole")
    return {
        **common,
        "vectors": put_together(ranks),
        "probe": state["probe"],
        "inspected": {key: inspected[key] for key in INSPECTED},
        "exported": exported,
        "losses": end["losses"],
        "digests": end["digests"],
    }


class Block(nn.Module):
    """Names that the release takes for layers split over their inputs, which it stores transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(16, 24)
        self.o_proj = nn.Linear(24, 16, bias=False)
        self.down_proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(torch.relu(x + self.o_proj(torch.relu(self.q_proj(x)))))


def library(out: Path) -> dict[str, Any]:
    """A loop in plain torch that saved its two state dicts after 12 steps, behind the updates of steps 5 and 10."""
    torch.manual_seed(0)
    model, config = Block(), SmetConfig(density=0.25, update_interval=5, warmup_steps=4, block=(1, 2))
    sparsify(model, config)
    remedies = Remedies(config.bias_correction, config.warmup_steps, config.warmup_scope)
    optimizer = SmetAdamW(parameter_groups(model, config), lr=1e-2, remedies=remedies)
    topology = TopologyController(model, config, LocalStore(optimizer), MaskBank(model), total_steps=40)
    losses = []
    for step in range(20):
        if step == 12:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, out / "library.pt")
            (out / "library-topology.json").write_text(json.dumps(topology.state_dict()))
            saved = {key: digest(value) for key, value in model.state_dict().items()}
            dense = {name: digest(layer.dense_weight()) for name, layer in sparse_layers(model).items()}
            state = [{key: digest(value) for key, value in entry.items()} for entry in optimizer.state.values()]
            clock, masks = optimizer.steps_done, topology.mask_digest()
        topology.before_step()
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.flip(1)).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        topology.after_step()
    return {"model": saved, "dense": dense, "state": state, "clock": clock, "masks": masks, "losses": losses}


def resolved(root: Path) -> dict[str, Any]:
    """Every run file of the release, as the release understood it."""
    paths = sorted([*root.glob("*.yaml"), *root.glob("clusters/*.yaml")])
    return {path.relative_to(root).as_posix(): load_config(path).to_dict() for path in paths}


def pack(source: Path, target: Path) -> None:
    """A folder as one compressed file, without names of people or machines."""

    def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(target, "w:xz") as file:
        file.add(source, source.name, filter=nobody)


def main(out: Path) -> None:
    """Write it all into ``out``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", tokens=3000)
        facts: dict[str, Any] = {"runs": {run: facts_of(run, folder) for run in RUNS}}
        for run_name in RUNS:
            pack(folder / run_name, out / f"{run_name}.tar.xz")
        for file in folder.glob("corpus*"):
            shutil.copy(file, out)
    facts["library"] = library(out)
    facts["configs"] = resolved(Path("configs"))
    pack(Path("configs"), out / "configs.tar.xz")
    (out / "facts.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
