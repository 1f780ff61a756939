"""Files are written tensor by tensor, checkpoints vector by vector, and folders appear whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pretrain.checkpoint import folder as folders
from pretrain.errors import CheckpointError
from tests.tools.checkpoints.models import make_hf, read_vectors
from tools.checkpoints import stream, writer
from tools.checkpoints.place import new_folder, require_free
from tools.checkpoints.stream import Entry

ROOT = Path(__file__).resolve().parents[3]


def entry(name: str, tensor: torch.Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def test_the_library_reads_what_is_streamed(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b.t": torch.randn(4, 6).t(),
        "c": torch.randn(7).bfloat16(),
        "\u00e9": torch.arange(11, dtype=torch.uint8),
        "empty": torch.empty(0, 4),
    }
    stream.write(tmp_path / "x.safetensors", [entry(*item) for item in tensors.items()], {"format": "pt", "k": "v"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert list(sorted(loaded)) == sorted(tensors)
    assert all(
        torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype for name in loaded
    )
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "k": "v"}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "y.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size % 8 == sum(t.nbytes for t in tensors.values()) % 8


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def load() -> torch.Tensor:
        assert sum(tensor() is not None for tensor in made) <= 1  # the one before lives until this one takes its name
        tensor = torch.zeros(10)
        made.append(weakref.ref(tensor))
        return tensor

    stream.write(tmp_path / "x.safetensors", [Entry(str(n), (10,), torch.float32, load) for n in range(5)], {})
    assert len(load_file(tmp_path / "x.safetensors")) == 5


def test_a_tensor_of_another_shape_than_announced_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a has shape \(2,\), expected \(3,\)"):
        stream.write(tmp_path / "x", [Entry("a", (3,), torch.float32, lambda: torch.zeros(2))], {})


def test_files_are_cut_by_size() -> None:
    entries = [entry(str(n), torch.zeros(size, dtype=torch.uint8)) for n, size in enumerate([4, 4, 4, 20, 1, 9, 1])]
    assert [[e.name for e in part] for part in stream.split(entries, 10)] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4", "5"],
        ["6"],
    ]


def test_a_written_checkpoint_is_one_that_a_run_would_publish(tmp_path: Path, runs: Path) -> None:
    values = {"a": torch.randn(5), "a/exp_avg": torch.zeros(5), "l.mask": torch.tensor([3], dtype=torch.uint8)}
    vectors = {name: writer.LazyVector(v.numel(), v.dtype, lambda v=v: v) for name, v in values.items()}  # type: ignore[misc]
    made = writer.write_checkpoint(tmp_path, vectors, {"step": 7})
    assert made == tmp_path / "step-00000007" and folders.published(tmp_path) == [made]
    assert (tmp_path / "latest").read_text() == "step-00000007\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000007"]
    manifest = folders.read_manifest(made)
    assert folders.damage(made, manifest) == []
    of_a_run = folders.read_manifest(folders.published(runs / "grouped" / "checkpoints")[-1])
    assert manifest.keys() == of_a_run.keys()
    assert manifest["layout"].keys() == of_a_run["layout"].keys()
    assert manifest["versions"] == of_a_run["versions"]
    assert [git is None or len(git) for git in (manifest["git"], of_a_run["git"])] in ([40, 40], [True, True])
    back = read_vectors(made)
    assert back.keys() == values.keys() and all(torch.equal(back[name], values[name]) for name in values)


def test_a_vector_that_breaks_its_promise_is_a_bug() -> None:
    vector = writer.LazyVector(3, torch.float32, lambda: torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected 3 x torch.float32"):
        vector.__get_tensor_shard__(None)


def test_too_little_space_is_noticed_before(tmp_path: Path) -> None:
    vectors = {"a": writer.zeros(1 << 50)}
    with pytest.raises(CheckpointError, match=r"the checkpoint needs .* MB free"):
        writer.require_space(tmp_path, vectors)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), new_folder(out, {}) as folder:
        (folder / "half").write_text("x")
        assert not out.exists()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with new_folder(out, {"tool": "t"}) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
    assert json.loads((out / "origin.json").read_text()) == {"tool": "t", "files": ["sub/file"]}
    require_free(out, overwrite=True)
    (out / "sub" / "more").write_text("y")
    with pytest.raises(CheckpointError, match="sub/more, which this tool did not write"):
        require_free(out, overwrite=True)
    (tmp_path / "link").symlink_to(out)
    for taken in (tmp_path / "link", out / "sub" / "file"):
        with pytest.raises(CheckpointError, match="is not a folder"):
            require_free(taken, overwrite=True)
    (tmp_path / "bare").mkdir()
    require_free(tmp_path / "bare", overwrite=False)


_MEASURE = """
import json, sys
from pathlib import Path
from tools import export_hf, import_hf, inspect_checkpoint

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

def work(folder, tool, *arguments):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    assert tool.main([str(argument) for argument in arguments]) == 0
    return status("VmHWM") - before

for folder in map(Path, sys.argv[1:]):  # the first one warms up
    needed = {
        "import": work(folder, import_hf, folder / "source", folder / "imported", "--density", 0.5),
        "inspect": work(folder, inspect_checkpoint, folder / "imported"),
        "export": work(folder, export_hf, folder / "imported", folder / "exported"),
    }
print(json.dumps(needed))
"""


def test_memory_stays_far_below_the_model(tmp_path: Path) -> None:
    """24 layers of 3.4 MB: each tool needs a few matrices (of 0.8 MB) and small change, not the model."""
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 4}
    make_hf(tmp_path / "small" / "source", num_hidden_layers=1)
    model = make_hf(tmp_path / "large" / "source", **shape, num_hidden_layers=24, max_shard_size="4MB")
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 80e6
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needed = json.loads(done.stdout.splitlines()[-1])
    assert max(needed.values()) < size / 3, needed
