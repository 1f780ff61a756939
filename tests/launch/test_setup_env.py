"""launch/setup_env.sh with a stand-in for Python, so that nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "launch" / "setup_env.sh"

# Answers the version question, "makes" a venv by copying itself, and notes every pip call.
PYTHON = """#!/bin/bash
case "$*" in
  *version_info*) echo "${FAKE_VERSION:-3.11}" ;;
  *ensurepip*) exit "${FAKE_NO_VENV:-0}" ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip "*) echo "$*" >>pip-calls; [ -z "${FAKE_PIP_FAILS:-}" ] || { echo "no such release"; exit 1; } ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "launch").mkdir()
    shutil.copy(SCRIPT, tmp_path / "launch")
    (tmp_path / "requirements.txt").write_text("torch==1\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return tmp_path


def set_up(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "launch" / "setup_env.sh", *arguments],
        env={**os.environ, "PYTHON": str(checkout / "python3"), **environment},
        capture_output=True,
        text=True,
    )


def pip_calls(checkout: Path, what: str = "-r requirements") -> int:
    path = checkout / "pip-calls"
    return sum(what in line for line in path.read_text().splitlines()) if path.exists() else 0


def test_installs_once_and_again_when_requirements_change(checkout: Path) -> None:
    first = set_up(checkout, "--dev")
    assert first.returncode == 0 and "making .venv with Python 3.11" in first.stderr
    assert pip_calls(checkout) == 1
    for arguments in (("--dev",), ()):  # --dev brings what a run needs
        again = set_up(checkout, *arguments)
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert pip_calls(checkout) == 1
    (checkout / "requirements.txt").write_text("torch==2\n")
    assert set_up(checkout, "--dev").returncode == 0
    assert pip_calls(checkout) == 2


def test_the_project_itself_is_installed_once_and_again_when_its_metadata_change(checkout: Path) -> None:
    for _ in range(2):
        assert set_up(checkout).returncode == 0
        assert pip_calls(checkout, "--no-deps --no-build-isolation --editable .") == 1
    (checkout / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert set_up(checkout).returncode == 0
    assert (pip_calls(checkout, "--editable ."), pip_calls(checkout)) == (2, 1)


def test_an_environment_that_is_linked_here_keeps_its_own_checkout(checkout: Path, tmp_path: Path) -> None:
    assert set_up(checkout).returncode == 0
    worktree = tmp_path / "worktree"
    (worktree / "launch").mkdir(parents=True)
    for name in ("launch/setup_env.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(checkout / name, worktree / name)
    (worktree / ".venv").symlink_to(checkout / ".venv")
    done = subprocess.run(
        [worktree / "launch" / "setup_env.sh"], env={**os.environ, "PYTHON": str(checkout / "python3")}
    )
    assert done.returncode == 0 and not (worktree / "pip-calls").exists()


def test_a_run_environment_is_not_yet_one_for_tests(checkout: Path) -> None:
    assert set_up(checkout).returncode == 0
    assert set_up(checkout, "--dev").returncode == 0
    assert pip_calls(checkout) == 2


def test_a_failed_install_is_tried_again(checkout: Path) -> None:
    failed = set_up(checkout, FAKE_PIP_FAILS="1")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-2] == "no such release"
    assert failed.stderr.splitlines()[-1].startswith("error: pip could not install requirements.txt")
    assert set_up(checkout).returncode == 0
    assert pip_calls(checkout) == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ((), {"PYTHON": "python-of-tomorrow"}, "no 'python-of-tomorrow' found, expected Python 3.10 to 3.13"),
        ((), {"FAKE_VERSION": "3.9"}, "is Python 3.9, expected 3.10 to 3.13; set PYTHON"),
        ((), {"FAKE_NO_VENV": "1"}, "has no venv module, expected one; apt-get install python3-venv"),
        (("--prod",), {}, "unknown option '--prod', expected --dev or nothing"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    checkout: Path, arguments: tuple[str, ...], environment: dict[str, str], expected: str
) -> None:
    result = set_up(checkout, *arguments, **environment)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and expected in line
    assert pip_calls(checkout) == 0


def test_without_a_compiler_it_says_so(checkout: Path) -> None:
    tools = checkout / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "flock", "cat", "sha256sum", "cut", "cp", "env"):
        (tools / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name} on this machine"))
    result = set_up(checkout, PATH=str(tools))
    assert result.returncode == 2
    assert result.stderr == "error: no gcc found, expected a C compiler for the kernels; apt-get install gcc g++\n"


def test_a_venv_of_another_python_is_not_overwritten(checkout: Path) -> None:
    assert set_up(checkout).returncode == 0
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/bash\necho 3.12\n")
    result = set_up(checkout, FAKE_VERSION="3.10")
    assert result.returncode == 2
    assert result.stderr == "error: .venv holds Python 3.12, expected 3.10; remove .venv or set PYTHON\n"


def test_help_tells_the_usage(checkout: Path) -> None:
    result = set_up(checkout, "--help")
    assert result.returncode == 0 and "launch/setup_env.sh --dev" in result.stdout
