"""A checkpoint from elsewhere is data: what is planted in it, with checksums made anew, is refused and never runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from pretrain.checkpoint.folder import MANIFEST, STATE, describe
from pretrain.checkpoint.index import INDEX
from tests.damage import Payload, bombs, mend_checkpoint, pickled, torch_file
from tests.distributed import run_ranks
from tests.pretrain.attempts import Attempt, attempt, write_run_file
from tests.pretrain.runs import write_corpus
from tests.tools.checkpoints.models import make_hf
from tools import export_hf, import_hf, inspect_checkpoint

DATA = "__0_0.distcp"


def index_of(folder: Path) -> Metadata:
    return pickle.loads((folder / INDEX).read_bytes())  # our own, so far


def reindex(folder: Path, change: Callable[[Metadata], object]) -> None:
    metadata = index_of(folder)
    change(metadata)
    (folder / INDEX).write_bytes(pickle.dumps(metadata))


def first(metadata: Metadata) -> str:
    return next(iter(metadata.state_dict_metadata))


def restate(folder: Path, **changes: Any) -> None:
    state = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps({**state, **changes}))


def relist(folder: Path, name: str) -> None:
    """Name one more file in the manifest."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    mend_checkpoint(folder, files={**files, name: describe(folder / INDEX)})


def as_bytes(folder: Path, marker: Path) -> None:
    def change(metadata: Metadata) -> None:
        name = first(metadata)
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        place = next(iter(metadata.storage_data.values()))
        place.offset, place.length = 0, torch_file(marker, folder / DATA).stat().st_size

    reindex(folder, change)


def beside(folder: Path, marker: Path) -> None:
    """The index sends readers to a file that no manifest lists."""
    torch_file(marker, folder.parent / "outside.distcp")
    reindex(folder, lambda m: setattr(next(iter(m.storage_data.values())), "relative_path", "../outside.distcp"))


def gap(metadata: Metadata) -> None:
    [chunk] = metadata.state_dict_metadata[first(metadata)].chunks
    chunk.sizes = torch.Size([chunk.sizes[0] - 5])


def overwrite(folder: Path, kind: str, byte: int) -> None:
    """Fill the first vector of a kind with one byte."""
    metadata = index_of(folder)
    place = next(place for index, place in metadata.storage_data.items() if index.fqn.endswith(kind))
    content = bytearray((folder / DATA).read_bytes())
    entry = bytes(content[place.offset : place.offset + place.length])
    stored = torch.load(io.BytesIO(entry), weights_only=True).numpy().tobytes()
    at = place.offset + entry.index(stored)
    content[at : at + len(stored)] = bytes([byte]) * len(stored)
    (folder / DATA).write_bytes(content)


def model_of(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / STATE).read_text())["config"]
    restate(folder, config={**config, "model": {**config["model"], **changes}})


SETS_A_CLASS = (
    b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n(N}X\x07\x00\x00\x00versionX\x01\x00\x00\x00xstb."
)


def set_place(folder: Path, **changes: Any) -> None:
    """Say something else of where the first vector is."""
    reindex(folder, lambda metadata: vars(next(iter(metadata.storage_data.values()))).update(changes))


def set_size(folder: Path, size: int) -> None:
    reindex(folder, lambda index: setattr(index.state_dict_metadata[first(index)], "size", torch.Size([size])))


def surplus(metadata: Metadata) -> None:
    """A vector more, which no model asks for."""
    name = first(metadata)
    index, place = next((index, place) for index, place in metadata.storage_data.items() if index.fqn == name)
    metadata.state_dict_metadata["surplus"] = metadata.state_dict_metadata[name]
    metadata.storage_data[type(index)("surplus", index.offset)] = place


def data_that_runs(folder: Path, marker: Path) -> None:
    """In place of the first vector, and of just its size."""
    place = next(iter(index_of(folder).storage_data.values()))
    entry = torch_file(marker, folder.parent / "entry", place.length).read_bytes()
    content = (folder / DATA).read_bytes()
    assert place.offset == 0 and len(entry) == place.length
    (folder / DATA).write_bytes(entry + content[place.length :])


BIRTHS = {"steps_done": 0, "updates_done": 0, "last_code": 0, "ages": {"births": [None]}}
IN_INDEX: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "index that runs code": (
        lambda f, m: (f / INDEX).write_bytes(pickled(m)),
        f"{INDEX} is refused: it names posix.system, which is no part of an index; nothing was run",
    ),
    "index with code among its entries": (
        lambda f, m: reindex(f, lambda index: setattr(index, "planner_data", Payload(m))),
        "it names posix.system, which is no part of an index; nothing was run",
    ),
    "index that sets a class's attributes": (
        lambda f, m: (f / INDEX).write_bytes(SETS_A_CLASS),
        f"{INDEX} is damaged: it is no index of a checkpoint",
    ),
    "index that calls an entry bytes": (as_bytes, "model.embed_tokens.weight is no tensor; only tensors are loaded"),
    "index that is a list": (lambda f, m: (f / INDEX).write_bytes(pickle.dumps([1])), "it holds list, expected the"),
    "index that leads outside": (beside, "in a file that the manifest does not list: ../outside.distcp"),
    "vector with a gap": (lambda f, m: reindex(f, gap), "model.embed_tokens.weight is stored up to element"),
    "vector beyond its file": (lambda f, m: set_place(f, offset=1 << 40), f"is said to lie beyond the end of {DATA}"),
    "vector in less than it needs": (lambda f, m: set_place(f, length=10), "is said to need fewer bytes"),
    "vector that is transformed": (lambda f, m: set_place(f, transform_descriptors=["x"]), "stores plain tensors only"),
    "vector of 2 ** 60": (lambda f, m: set_size(f, 1 << 60), "model.embed_tokens.weight is stored up to element"),
    "vector that nobody asks for": (lambda f, m: reindex(f, surplus), "surplus"),
    "data that runs code": (data_that_runs, f"{DATA} is refused: model.embed_tokens.weight is no plain tensor"),
    "mask of more weights than there are": (lambda f, m: overwrite(f, ".mask", 255), "model.layers.0.self_attn.q_proj"),
    "ages that no table knows": (lambda f, m: overwrite(f, "/birth", 7), "has birth code 7, which state.json does not"),
    "pipe for an index": (lambda f, m: ((f / INDEX).unlink(), os.mkfifo(f / INDEX)), f"{INDEX} is missing"),
}
IN_STATE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "state that is a list": (lambda f, m: (f / STATE).write_text("[1]"), f"{STATE} is no state of a run: it holds"),
    "state that nests": (lambda f, m: (f / STATE).write_text(bombs()["nesting"]), "it is no JSON (nested too deeply)"),
    "state with a number of 100,000 digits": (lambda f, m: (f / STATE).write_text(bombs()["number"]), f"{STATE} is "),
    "state with a text for a step": (lambda f, m: restate(f, step="6"), f"{STATE} is no state of a run: step is str"),
    "state with births of its own": (lambda f, m: restate(f, topology=BIRTHS), "ages.births is not a list of 256"),
    "state of a million layers": (lambda f, m: model_of(f, num_hidden_layers=60_000), "60000 layers"),
    "state of a width that no machine holds": (lambda f, m: model_of(f, hidden_size=10**17), "at most 16,777,216"),
}
IN_MANIFEST: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "manifest that leads outside": (lambda f, m: relist(f, "../../secret"), "it lists the file '../../secret', expec"),
    "manifest with an absolute file": (lambda f, m: relist(f, "/etc/passwd"), "it lists the file '/etc/passwd', exp"),
    "manifest that nests": (lambda f, m: (f / MANIFEST).write_text(bombs()["nesting"]), f"{MANIFEST} is damaged or"),
    "manifest without sizes": (lambda f, m: mend_checkpoint(f, files={INDEX: 1, STATE: 2}), f"lists {INDEX} without"),
    "manifest with a list for a layout": (lambda f, m: mend_checkpoint(f, layout=[1]), "its layout is list, expected"),
    "pipe for a manifest": (lambda f, m: ((f / MANIFEST).unlink(), os.mkfifo(f / MANIFEST)), f"{MANIFEST}"),
}
CASES = IN_INDEX | IN_STATE | IN_MANIFEST

BESIDE_EXPORT = ("ages that no table knows",)
BESIDE_INSPECTION = ("mask of more weights than there are", "data that runs code")
"""What a tool does not read, it cannot refuse."""
BESIDE_RUN = ("state of a million layers", "state of a width that no machine holds")
"""Settings that only tools read: a run has its own."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with one imported checkpoint per case, and a whole one; and where planted code would leave its mark."""
    folder = tmp_path_factory.mktemp("planted")
    marker = folder / "it-ran"
    make_hf(folder / "hf")
    whole = folder / "whole"
    assert import_hf.main([str(folder / "hf"), str(whole), "--density", "0.5"]) == 0
    for number, (plant, _) in enumerate(CASES.values()):
        shutil.copytree(whole, folder / str(number))
        step = folder / str(number) / "step-00000000"
        plant(step, marker)
        if list(CASES)[number] not in (*IN_MANIFEST, "pipe for an index"):
            mend_checkpoint(step)
    return folder, marker


def resume_all(file: str, paths: list[str], watched: str) -> list[Attempt]:
    """Start the program from each checkpoint in turn; runs in a process of its own."""
    return [attempt([file, f"checkpoint.resume={path}", "train.stop_at=1"], watched) for path in paths]


@pytest.fixture(scope="module")
def resumed(planted: tuple[Path, Path]) -> dict[str, Attempt]:
    folder, _ = planted
    corpus = write_corpus(folder / "corpus", tokens=2000)
    changes = {"sparsity__density": 0.5, "sparsity__warmup_steps": 100, "sparsity__method": "smet", "train__steps": 400}
    file = write_run_file(folder / "run.yaml", corpus, folder / "run", evaluation__interval=0, **changes)
    text = Path(file).read_text().replace("  update_interval: 4\n", "").replace("  stop_fraction: 1.0\n", "")
    Path(file).write_text(text)
    (folder / "watched").mkdir()
    places = {name: number for number, name in enumerate(CASES) if name not in BESIDE_RUN} | {"whole": "whole"}
    paths = [str(folder / str(place) / "step-00000000") for place in places.values()]
    return dict(zip(places, run_ranks(resume_all, 1, file, paths, str(folder / "watched"))[0], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_tools_refuse_it_by_name(
    planted: tuple[Path, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = planted
    step = folder / str(list(CASES).index(name)) / "step-00000000"
    codes = [export_hf.main([str(step), str(tmp_path / "out")])]
    exported = capsys.readouterr().err
    codes.append(inspect_checkpoint.main([str(step)]))
    inspected = capsys.readouterr().err
    assert not marker.exists()
    assert codes == [2 * (name not in BESIDE_EXPORT), 2 * (name not in BESIDE_INSPECTION)], (exported, inspected)
    for text, code in zip((exported, inspected), codes, strict=True):
        if code == 0:
            continue
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and CASES[name][1] in errors[0] and "Traceback" not in text, text
    assert (tmp_path / "out").exists() == (codes[0] == 0)


@pytest.mark.parametrize("name", [name for name in CASES if name not in BESIDE_RUN])
def test_a_run_refuses_to_go_on_from_it(planted: tuple[Path, Path], resumed: dict[str, Attempt], name: str) -> None:
    error = resumed[name].sole_error()
    assert CASES[name][1] in error and not planted[1].exists()


def test_the_whole_one_is_taken(resumed: dict[str, Attempt]) -> None:
    assert resumed["whole"].code == 0 and "resumed from" in resumed["whole"].out, resumed["whole"]
