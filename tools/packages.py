"""What this project's folders are called: in a checkout, and where it is installed.

A checkout has ``tools``, ``launch`` and ``configs``, names too general for a directory that all packages of an
environment share. An installation calls them ``smet_tools``, ``smet_launch`` and ``smet_configs`` (``pyproject.toml``).
So modules of ``tools`` and ``launch`` import each other relatively, ``tools`` finds the other two by ``named`` and
``CONFIGS``, and programs that are started as ``python -m`` are named through ``named`` or ``__package__``.
"""

from __future__ import annotations

from pathlib import Path

INSTALLED = {"tools": "smet_tools", "launch": "smet_launch", "configs": "smet_configs"}
"""Folder of the checkout -> what it is called where the project is installed; others keep their names."""

ROOT = Path(__file__).resolve().parent.parent
"""Holds all packages: the checkout, or the environment's ``site-packages``."""

_is_renamed = (__package__ or "") == INSTALLED["tools"]


def named(module: str) -> str:
    """The name that imports ``module``, which is named as in the checkout: ``launch.status``."""
    package, dot, rest = module.partition(".")
    return (INSTALLED.get(package, package) if _is_renamed else package) + dot + rest


CONFIGS = next((ROOT / name for name in (INSTALLED["configs"], "configs") if (ROOT / name).is_dir()), ROOT / "configs")
"""The run files that come with the project."""


def shown(path: Path) -> Path:
    """``path`` from the working folder, where it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
