"""Loading: choose a checkpoint, verify it, and read it into any layout."""

from __future__ import annotations

from pathlib import Path

from pretrain.checkpoint import folder as folders
from pretrain.checkpoint.vectors import VectorReader, Vectors
from pretrain.errors import CheckpointError
from pretrain.layout import Layout


def choose(resume: str, root: Path, layout: Layout) -> Path | None:
    """The verified checkpoint to go on from, or None to start anew. Collective.

    ``auto`` takes the newest whole one below ``root`` and says so if newer ones are damaged;
    a path must be whole itself.

    Raises:
        CheckpointError: nothing usable, with the file that is damaged.
    """
    if resume == "never":
        return None
    if resume != "auto":
        path = Path(resume)
        _require_whole(path, layout)
        layout.agree(lambda: _require_newest(path, root))
        return path
    damaged: list[str] = []
    for path in reversed(layout.agree(lambda: folders.published(root))):
        problems = problems_of(path, layout)
        if not problems:
            if damaged and layout.is_main:
                print(f"warning: {damaged[0]}; going on from {path.name} instead", flush=True)
            return path
        damaged.append(problems[0])
    if damaged:
        raise CheckpointError(
            f"no whole checkpoint in {root}: {damaged[0]}; restore it, or choose another train.output_dir to start anew"
        )
    return None


def problems_of(path: Path, layout: Layout) -> list[str]:
    """Every damage of one checkpoint; ranks share the reading. Collective."""
    try:
        manifest = layout.agree(lambda: folders.read_manifest(path, option=None))
    except CheckpointError as error:
        return [str(error)]
    parts = layout.gather_objects(folders.damage(path, manifest, (layout.rank, layout.world_size)))
    return [problem for part in parts for problem in part]


def _require_whole(path: Path, layout: Layout) -> None:
    layout.agree(lambda: folders.read_manifest(path))
    problems = problems_of(path, layout)
    if problems:
        raise CheckpointError(f"checkpoint is damaged: {problems[0]}{folders.remedy(path)}")


def _require_newest(path: Path, root: Path) -> None:
    """Refuse to train anew what the run folder has already: later checkpoints would be taken for this branch's."""
    later = [other for other in folders.published(root) if folders.step_of(other) > folders.step_of(path)]
    if later:
        raise CheckpointError(
            f"checkpoint.resume is {path}, but {root} goes on to {later[-1].name}; leave checkpoint.resume out to go "
            "on from there, or choose another train.output_dir for a branch"
        )


def read_vectors(path: Path, vectors: Vectors, layout: Layout, other_optimizer: bool = False) -> None:
    """Fill the live fragments of ``vectors`` from the checkpoint, whatever layout wrote it. Collective.

    Births may be absent (a run whose topology never changed wrote it): then all weights are old; or be there without
    use, where this run's topology never changes. Both are said.

    Args:
        other_optimizer: the state in the checkpoint is that of another optimizer before its first step: it is left
            out, which is said, and this run's begins with zeros.

    Raises:
        CheckpointError: the checkpoint is of another model: a vector is missing, not in this model, or has another
            length or dtype; or it cannot be read.
    """
    reader = layout.agree(lambda: VectorReader(path))
    entries = reader.entries()
    stored = {name: entry.size.numel() for name, entry in entries.items()}
    everywhere = {name for names in layout.gather_objects(list(vectors)) for name in names}
    wanted = dict(vectors)
    absent = [name for name in vectors if _may_miss(name, other_optimizer) and name not in stored]
    for name in absent:
        wanted.pop(name).local.zero_()
    unused = [name for name in stored if name not in everywhere and _base(name, other_optimizer) in everywhere]
    wrong = [
        f"{name} has {stored.get(name, 'no')} elements, expected {vector.numel()}"
        for name, vector in wanted.items()
        if stored.get(name) != vector.numel()
    ]
    wrong += [
        f"{name} is {entries[name].properties.dtype}, expected {vector.local.dtype}"
        for name, vector in wanted.items()
        if name in stored and entries[name].properties.dtype != vector.local.dtype
    ]
    extra = [name for name in stored if name not in everywhere and name not in unused]
    wrong += [f"{name} is not in this model" for name in extra]
    layout.agree(lambda: _require_none(wrong, path))
    reader.load(wanted, process_group=layout.control)
    if layout.is_main:
        _tell(path, absent, unused)
        if other_optimizer:
            print(f"note: {path} is of another optimizer, before its first step: this run's begins anew", flush=True)


MAY_BE_ABSENT = ("/birth", ".mean_gradient")
"""Vectors of some settings alone: ages of what can be regrown, means of gradients that a criterion needs."""


def _may_miss(name: str, other_optimizer: bool) -> bool:
    """Whether a run may do without the vector ``name``."""
    return name.endswith(MAY_BE_ABSENT) or (other_optimizer and "/" in name)


def _base(name: str, other_optimizer: bool = False) -> str:
    """The vector that a vector of ``MAY_BE_ABSENT`` goes with; others as they are."""
    if other_optimizer and "/" in name:
        return name.rpartition("/")[0]
    if name.endswith(".mean_gradient"):
        return name.removesuffix(".mean_gradient") + ".values"
    return name.removesuffix("/birth")


def _tell(path: Path, absent: list[str], unused: list[str]) -> None:
    for kind, without, left_out in (
        ("/birth", "their weights count as old", "this run never regrows weights"),
        (".mean_gradient", "they begin at 0", "this run grows by something else"),
    ):
        what = "ages" if kind == "/birth" else "mean gradients"
        if count := sum(name.endswith(kind) for name in absent):
            print(f"note: {path} has no {what} for {count} vectors: {without}", flush=True)
        if count := sum(name.endswith(kind) for name in unused):
            print(f"note: {what} of {count} vectors in {path} are left out: {left_out}", flush=True)


def _require_none(wrong: list[str], path: Path) -> None:
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"checkpoint {path} is of another model or density: {wrong[0]}{more}; "
            "set model and sparsity as in its state.json, or start anew in another train.output_dir"
        )
