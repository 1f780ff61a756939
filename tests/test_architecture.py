"""The house: who may know whom, how large a file and a function may be, and where methods of others are replaced."""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median

import pytest

from tests.imports import circles, graph_of, imported, modules_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("smet", "pretrain", "launch", "tools")
"""From the lowest: each may import what stands before it."""

FLOORS: dict[str, tuple[str, ...]] = {
    "words": (
        "command", "errors", "exit_codes", "laggards", "numbers", "outside", "paths", "rules", "stability",
        "stopping", "traffic",
    ),
    "files and places": ("files", "layout", "leaving", "peak", "ports", "precision", "records", "screen", "writers"),
    "data": ("data",),
    "models": ("models",),
    "settings": ("advice", "changes", "config", "data_specs", "environment", "formula", "idle", "schedule"),
    "starting": ("meeting", "startup"),
    "what computes, and what that takes": ("engine", "parallel", "plan"),
    "what is kept": ("build", "checkpoint", "evaluate", "first_masks", "generate", "run_folder"),
    "what a run does beside training": ("callbacks", "heartbeat", "yardstick"),
    "the loop": ("trainer",),
    "what a run file names": ("lookup",),
    "where runs begin and end": ("dry_run", "ends", "origin", "products"),
    "a run": ("run", "summary"),
    "the command": ("__main__",),
}  # fmt: skip
"""The rooms of ``pretrain`` from the ground up: each may import from its own floor and those below it."""

REPLACING = ("smet/zero.py", "pretrain/engine/")
"""Where methods of torch and DeepSpeed are replaced, which call no hooks there."""


def test_no_circle_of_imports() -> None:
    assert circles(graph_of(ROOT, PACKAGES)) == []


def test_no_circle_of_rooms() -> None:
    """Rooms are the files and folders right below a package; in a circle of rooms none can be understood first."""
    rooms: dict[str, set[str]] = {}
    for name, others in graph_of(ROOT, PACKAGES).items():
        rooms.setdefault(_room(name), set()).update(_room(other) for other in others if _room(other) != _room(name))
    assert circles(rooms) == []


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_packages_import_only_those_below_them() -> None:
    graph = graph_of(ROOT, PACKAGES)
    place = {package: at for at, package in enumerate(PACKAGES)}
    upward = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if place[other.split(".")[0]] > place[name.split(".")[0]]
    ]
    assert upward == []


def test_what_is_installed_under_another_name_imports_itself_relatively() -> None:
    """``tools`` and ``launch`` (tools/packages.py); the others keep their names, and say them in full."""
    for name, file in modules_of(ROOT, PACKAGES).items():
        nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if _is_import(node)]
        if name.split(".")[0] in ("smet", "pretrain"):
            assert not any(getattr(node, "level", 0) for node in nodes), f"{name}: name modules in full"
            continue
        full = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        full += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        wrong = [text for text in full if str(text).split(".")[0] in ("tools", "launch")]
        assert wrong == [], f"{name}: relative, or through tools.packages.named"


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def test_no_room_of_pretrain_imports_from_a_higher_floor() -> None:
    floor = {room: at for at, rooms in enumerate(FLOORS.values()) for room in rooms}
    graph = graph_of(ROOT, ("pretrain",))
    rooms = {name: name.split(".")[1] for name in graph if name != "pretrain"}
    assert set(rooms.values()) <= floor.keys(), "a new room: say on which floor it is"
    upward = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if other != "pretrain" and floor[rooms[other]] > floor[rooms[name]]
    ]
    assert upward == []


def test_models_know_nothing_of_ranks() -> None:
    files = modules_of(ROOT, ("pretrain/models",)).values()
    assert files
    knowing = [
        (file.name, name)
        for file in files
        for name in imported(file)
        if name.startswith(("torch.distributed", "deepspeed", "pretrain.layout", "pretrain.parallel"))
    ]
    assert knowing == []


def test_no_method_is_replaced_outside_of_the_engine() -> None:
    found = []
    for file in modules_of(ROOT, PACKAGES).values():
        path = str(file.relative_to(ROOT))
        if not path.startswith(REPLACING):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found += [f"{path}:{line}" for line in replacements(tree)]
            found += [path for name in imported(file) if name.startswith("unittest.mock")]
    assert found == []


def replacements(tree: ast.AST) -> list[int]:
    """Lines that put a function which was defined there in the place of an attribute of another object or class."""
    lines = []
    for scope in ast.walk(tree):
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
            own = {node.name for node in ast.walk(scope) if isinstance(node, ast.FunctionDef)} - {scope.name}
            for node in ast.walk(scope):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in own:
                    lines += [
                        node.lineno
                        for target in node.targets
                        if isinstance(target, ast.Attribute) and ast.unparse(target.value) not in ("self", "cls")
                    ]
    return sorted(set(lines))


def test_files_and_functions_are_small() -> None:
    lengths, long_functions = {}, []
    for name, file in modules_of(ROOT, PACKAGES).items():
        text = file.read_text(encoding="utf-8")
        lengths[name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 60:
                    long_functions.append(f"{name}.{node.name}: {lines} lines")
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}
    assert median(lengths.values()) < 130
    assert long_functions == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import b", [["a", "b"]]),
        ("def f() -> None:\n    from b import x", [["a", "b"]]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b", []),
        ("import c", []),
        ("from .x import y", []),
        ("from ..b import x", [["a", "b"]]),
    ],
)
def test_circles_are_found(tmp_path: Path, text: str, expected: list[list[str]]) -> None:
    for name, content in {"a": text, "b": "import c\nimport a", "c": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
    assert circles(graph_of(tmp_path, ("a", "b", "c"))) == expected


def test_replaced_methods_are_found() -> None:
    text = (
        "def f(engine):\n    def step(): ...\n    engine.step = step\n    self.step = step\n    engine.zero.step = step"
    )
    assert replacements(ast.parse(text)) == [3, 5]
