"""Command lines of launch as tests use them: a run file that fits, and options parsed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launch.arguments import run_parser
from launch.prepare import Prepared, prepare
from tests.pretrain.runs import settings

ENVIRON = {"PATH": "/shared/env/bin:/usr/bin", "OMP_NUM_THREADS": "4", "NCCL_IB_HCA": "mlx5", "SECRET": "no"}


def write_run(folder: Path, **changes: object) -> Path:
    """A small run file below ``folder``: 8 sequences per step, CPU."""
    import yaml

    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings("corpus", Path("runs/small"), **changes)))
    return path


def prepared(arguments: list[str], environ: dict[str, str] | None = None) -> Prepared:
    """What ``arguments`` ask for, with Python and folder as on a cluster, so that no machine shows."""
    found = prepare(run_parser().parse_intermixed_args(arguments), ENVIRON if environ is None else environ)
    return replace(found, job=replace(found.job, python="/shared/env/bin/python", folder="/shared/project"))
