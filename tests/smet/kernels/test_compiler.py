"""Building the C++ kernels: once, by many at a time, and again when the cache is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smet.kernels import compiler, cpu
from smet.kernels.compiler import BuildError

SMALL = """
#include <cstdint>
extern "C" int answer() { return 42; }
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "small.cpp"
    path.write_text(SMALL)
    return path


@pytest.fixture(autouse=True)
def fresh_compiler() -> object:
    compiler.compiler.cache_clear()
    yield
    compiler.compiler.cache_clear()


@pytest.fixture
def compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes its arguments, one call a line, into the returned file."""
    record = tmp_path / "calls"
    record.touch()
    script = tmp_path / "recording-c++"
    script.write_text(f'#!/bin/sh\necho "$@" >> {record}\nexec {compiler.compiler()[0][0]} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    compiler.compiler.cache_clear()
    return record


def compilations(record: Path) -> list[str]:
    return [line for line in record.read_text().splitlines() if "-o" in line.split()]


def answer(content: bytes) -> int:
    return compiler.load(content).answer()


def test_folders_of_killed_builds_are_removed_at_the_next_build(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for name, age in (("killed", 7200.0), ("at-work", 60.0)):
        (left := folder / f".building-{name}").mkdir(parents=True)
        (left / "cpu.so").write_bytes(b"half")
        os.utime(left, (time.time() - age, time.time() - age))
    assert answer(compiler.build(source, folder)) == 42
    assert sorted(path.name for path in folder.glob(".*")) == [".building-at-work"]


def test_a_build_is_kept_and_used_again(source: Path, compilers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = compiler.build(source, folder)
    assert answer(first) == 42
    assert compiler.build(source, folder) == first
    assert len(compilations(compilers)) == 1
    assert [path.suffix for path in folder.iterdir()] == [".so"]  # and nothing half-made


def test_source_flags_and_processor_each_make_a_build_of_their_own(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    compiler.build(source, folder)
    compiler.build(source, folder, machine=())
    source.write_text(SMALL.replace("42", "43"))
    assert answer(compiler.build(source, folder)) == 43
    monkeypatch.setattr(compiler, "processor", lambda: "another")
    compiler.build(source, folder)
    keys = {path.name.split("-")[1] for path in folder.iterdir()}
    assert len(keys) == 4


def test_the_processor_is_known_by_its_instructions() -> None:
    assert os.uname().machine in compiler.processor()
    assert "flags" in compiler.processor() or "Features" in compiler.processor()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + b"\xff"])
def test_a_damaged_build_is_never_loaded_but_built_again(
    source: Path, compilers: Path, tmp_path: Path, damage: object
) -> None:
    folder = tmp_path / "cache"
    good = compiler.build(source, folder)
    (path,) = folder.iterdir()
    path.write_bytes(damage(good))
    assert answer(compiler.build(source, folder)) == 42
    assert len(compilations(compilers)) == 2
    assert path.read_bytes() == good  # mended for the next one
    assert list(folder.iterdir()) == [path]


def test_three_processes_that_start_together_all_get_their_kernels(tmp_path: Path) -> None:
    program = (
        "import torch; from smet import kernels; from smet.mask import TileGrid, pack;"
        "bits = pack(torch.tensor([True, False, True]));"
        "print(kernels.expand(bits, torch.tensor([1.0, 2.0]), TileGrid(1, 3)).tolist(), kernels.describe())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "SMET_KERNELS": "native"}
    running = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        for process in running:
            out, _ = process.communicate(timeout=300)
            assert process.returncode == 0
            assert out.startswith("[[1.0, 0.0, 2.0]] kernels on cpu: C++")
    finally:
        for process in running:
            process.kill()
    built = list((tmp_path / "smet" / "kernels").iterdir())
    assert len(built) == 1 and built[0].suffix == ".so"


def test_a_cache_that_cannot_be_written_costs_a_build_but_works(source: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()  # no folder can be made below a file, not even by root
    assert answer(compiler.build(source, blocked / "cache")) == 42
    assert blocked.read_bytes() == b""


def test_a_compiler_that_does_not_know_this_processor_is_asked_without(source: Path, tmp_path: Path) -> None:
    assert answer(compiler.build(source, tmp_path / "cache", machine=("-march=unheard-of",))) == 42


def test_a_source_that_does_not_compile_says_why_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    source.write_text("int answer() { return unknown; }")
    with pytest.raises(BuildError, match=r"c\+\+ failed: .*error: .unknown.") as caught:
        compiler.build(source, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"), [("no-such-compiler", r"looked for no-such-compiler"), ("false", "false failed")]
)
def test_a_compiler_that_is_missing_or_broken_is_named(
    monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(BuildError, match=message):
        compiler.compiler()


def test_bytes_that_are_no_library_do_not_load() -> None:
    with pytest.raises(BuildError, match="do not load"):
        compiler.load(b"not a library")


def test_without_files_in_memory_a_private_file_does(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = compiler.build(source, tmp_path / "cache")
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "private"))
    (tmp_path / "private").mkdir()
    assert answer(content) == 42
    assert list((tmp_path / "private").iterdir()) == []


def test_the_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert compiler.cache_folder() == Path("/elsewhere/smet/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert compiler.cache_folder() == Path("/home/someone/.cache/smet/kernels")


def test_the_native_build_uses_the_instructions_there_are(request: pytest.FixtureRequest) -> None:
    folder = Path(request.config.cache.mkdir("smet-kernels"))
    kernels = cpu.CpuKernels(folder)
    flags = compiler.processor()
    expected = "AVX-512 VBMI2" if "avx512_vbmi2" in flags else "AVX-512" if "avx512f" in flags else "portable"
    assert kernels.level == expected
    assert cpu.CpuKernels(folder, machine=()).level == "portable"
