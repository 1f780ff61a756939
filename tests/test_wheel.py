"""The wheel and the sdist, installed where the checkout is not: every command answers, and a model is trained."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.distributed import free_port
from tests.pages import ROOT

pytestmark = pytest.mark.slow

HELP = """
import sys
from smet_tools.__main__ import main
from smet_tools.commands import WORDS, Group
sys.argv = ["smet"]
def walk(commands, path):
    for word, one in commands.items():
        if isinstance(one, Group):
            main([*path, word, "--help"])
            walk(one.commands, [*path, word])
            continue
        try:
            main([*path, word, "--help"])
        except SystemExit as end:
            print(f"answered {end.code}: {' '.join([*path, word])}")
walk(WORDS, [])
elsewhere = [name for name in sys.modules if name.split(".")[0] in ("tools", "launch", "tests")]
assert not elsewhere, elsewhere
"""
CONSUMER = """
import smet
import torch

wrong: int = smet.sparsify(torch.nn.Linear(4, 4), density=0.5)
"""


def call(*command: str | Path, folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(source: Path, into: Path) -> Path:
    """The wheel of ``source``."""
    call(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", into, source,
        folder=into,
    )  # fmt: skip
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tracked files, which are gone then, by way of the sdist."""
    folder = tmp_path_factory.mktemp("build")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    for name in ("direct", "sdist", "unpacked", "again"):
        (folder / name).mkdir()
    direct = build(folder / "source", folder / "direct")
    program = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    call(sys.executable, "-c", program, folder / "sdist", folder=folder / "source")
    (sdist,) = (folder / "sdist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    again = build(source, folder / "again")
    assert sorted(zipfile.ZipFile(direct).namelist()) == sorted(zipfile.ZipFile(again).namelist())
    shutil.rmtree(folder / "source")
    shutil.rmtree(source)
    return again


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; what it depends on is lent by this one, but for this project itself."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "env", folder=folder)
    python = folder / "env" / "bin" / "python"
    call(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel,
        folder=folder,
    )  # fmt: skip
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (folder / "work").mkdir()
    return folder


def inside(environment: Path, *command: str | Path) -> str:
    """What a command prints there, with the environment activated."""
    dropped = ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    variables = {key: value for key, value in os.environ.items() if key not in dropped}
    path = f"{environment}/env/bin:{os.environ['PATH']}"
    variables.update(PATH=path, OMP_NUM_THREADS="1", VIRTUAL_ENV=f"{environment}/env")
    return call(*command, folder=environment / "work", environment=variables)


def test_only_names_of_this_project_land_in_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "smet", "pretrain", "smet_tools", "smet_launch", "smet_configs",
    }  # fmt: skip
    assert {"smet/py.typed", "pretrain/py.typed", "smet_configs/models/60m.yaml", "smet/kernels/cpu.cpp"} <= {*names}
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    told = zipfile.ZipFile(wheel).read(metadata).decode()
    for line in (
        "Name: smet-train", "Requires-Python: <3.14,>=3.10", "Requires-Dist: torch<2.14,>=2.11",
        "Provides-Extra: train", "Project-URL: Paper, https://arxiv.org/abs/2606.00888", "Classifier: Typing :: Typed",
        "Description-Content-Type: text/markdown",
    ):  # fmt: skip
        assert line in told.splitlines(), told[:2000]
    assert "# SMET: pre-training sparse LLaMA on DeepSpeed" in told


def test_every_command_answers(environment: Path) -> None:
    assert inside(environment, "smet", "--help").startswith("usage: smet COMMAND")
    said = inside(environment, "python", "-c", HELP)
    answered = [line for line in said.splitlines() if line.startswith("answered ")]
    assert len(answered) > 15 and all(line.startswith("answered 0: ") for line in answered), said
    assert "_smet_words" in inside(environment, "smet", "completion", "bash")
    where = inside(environment, "python", "-c", "import smet, pretrain; print(smet.__file__, pretrain.__file__)")
    assert all(str(environment) in place for place in where.split())


def test_type_checkers_see_its_types(environment: Path) -> None:
    work = environment / "consumer"
    work.mkdir()
    (work / "consumer.py").write_text(CONSUMER)
    (work / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\nignore_missing_imports = True\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", environment / "env" / "bin" / "python", "--cache-dir",
         work / "cache", "consumer.py"],
        cwd=work, capture_output=True, text=True,
    )  # fmt: skip
    assert 'expression has type "SparsifyReport", variable has type "int"' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("error:") == 1, done.stdout


def test_from_text_to_an_exported_model(environment: Path) -> None:
    work = environment / "work"
    text = ["--input", str(Path(asyncio.__file__).parent), "--include", "*.py"]
    model = "data/quickstart/tokenizer.model"
    inside(environment, "smet", "tokenizer", "train", *text, "--vocab-size", "512", "--output", model[:-6])
    inside(
        environment, "smet", "corpus", "make", *text, "--tokenizer", model, "--validation-fraction", "0.1",
        "--output", "data/quickstart/python",
    )  # fmt: skip
    inside(environment, "smet", "corpus", "verify", "data/quickstart/python_train")
    config = inside(environment, "python", "-c", "from smet_tools.packages import CONFIGS; print(CONFIGS)").strip()
    assert config.startswith(str(environment))
    smaller = [
        f"{config}/quickstart.yaml", "model.vocab_size=512", "model.hidden_size=64", "model.num_hidden_layers=1",
        "model.intermediate_size=64", "train.steps=4", "sparsity.update_interval=2", "sparsity.warmup_steps=1",
        "optimizer.warmup_steps=1", "data.seq_length=32", "evaluation.interval=4", "evaluation.samples=4",
        "checkpoint.interval=4", "model.max_position_embeddings=32",
    ]  # fmt: skip
    assert "| predicted seconds per step |" in inside(environment, "smet", "plan", *smaller)
    start = ["python", "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port())]
    said = inside(environment, *start, "--module", "pretrain", *smaller, "train.stop_at=2")
    assert "stopped after step 2 of 4" in said, said
    said = inside(environment, "smet", "train", *smaller, "train.micro_batch_size=8")
    assert "done: 4 steps" in said and "to see it: smet plot runs/quickstart; to use it: smet export" in said, said
    assert "done, step 4 of 4" in inside(environment, "smet", "status", "runs/quickstart")
    inside(environment, "smet", "plot", "runs/quickstart")
    assert (work / "runs" / "quickstart" / "run.png").stat().st_size > 10_000
    inside(environment, "smet", "export", "runs/quickstart", "out")
    said = inside(environment, "smet", "generate", "runs/quickstart", "import asyncio", "--max-new-tokens", "8")
    assert said.startswith("import asyncio"), said
    judged = json.loads(inside(environment, "smet", "eval", "runs/quickstart", "--json"))
    assert 1 < judged["perplexity"] < 600, judged
    assert json.loads((work / "out" / "config.json").read_text())["vocab_size"] == 512
    assert "step 4" in inside(environment, "smet", "inspect", "runs/quickstart")
    state = json.loads(next((work / "runs").rglob("manifest.json")).read_text())
    assert state.get("git") is None, "the environment is no checkout"
