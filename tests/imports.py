"""Who imports whom, read from the sources: imports in functions count, those for types alone do not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, set[str]]
"""Module -> the modules of the same tree that it imports."""


def modules_of(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """Dotted name -> file."""
    files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def graph_of(root: Path, packages: tuple[str, ...]) -> Graph:
    """The imports of ``packages`` among each other."""
    modules = modules_of(root, packages)
    return {
        name: {found for text in imported(file) if (found := _module(text, modules)) not in (None, name)}
        for name, file in modules.items()
    }  # type: ignore[misc]


def imported(file: Path) -> Iterator[str]:
    """Dotted names that a file imports: ``a.b.c`` for ``from a.b import c``, and for ``from .b import c`` in ``a``."""
    yield from _imported(ast.parse(file.read_text(encoding="utf-8")), _package(file))


def _package(file: Path) -> list[str]:
    """The names of the packages around a file, outermost first."""
    names: list[str] = []
    for folder in file.parents:
        if not (folder / "__init__.py").is_file():
            break
        names.insert(0, folder.name)
    return names


def _imported(node: ast.AST, package: list[str]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            around = package[: len(package) + 1 - child.level] if child.level else []
            module = ".".join([*around, *([child.module] if child.module else [])])
            yield from (f"{module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (name for other in child.orelse for name in _imported(ast.Module([other], []), package))
        else:
            yield from _imported(child, package)


def _module(text: str, modules: dict[str, Path]) -> str | None:
    return text if text in modules else text.rpartition(".")[0] if text.rpartition(".")[0] in modules else None


def circles(graph: Graph) -> list[list[str]]:
    """The sets of modules that import each other in a circle (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in number:
            visit(name)
    return found
