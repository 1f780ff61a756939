"""Questions that tables, figures and the reading ask of ``results.json``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .statistics import Difference, Spread

Cell = dict[str, Any]
Group = tuple[str, str, float]
"""(size, branch base, density)."""
LATER = "12"
"""Steps behind an update at which its rise is read: a cold start peaks there."""


class View:
    """One ``results.json``.

    Attributes:
        roles: which method or variant plays which part in the reading; names that the matrix file gives.
    """

    def __init__(self, results: dict[str, Any]):
        self.results, self.matrix = results, results["matrix"]
        self.roles: dict[str, Any] = self.matrix.get("roles") or {}
        self.runs = [cell for cell in results["cells"] if cell["kind"] == "run"]

    @property
    def sizes(self) -> list[str]:
        """Sizes of which there are runs, in the file's order."""
        return [size for size in self.matrix["sizes"] if any(cell["size"] == size for cell in self.runs)]

    @property
    def densities(self) -> list[float]:
        """Densities below 1 of which there are runs, falling."""
        return sorted({cell["density"] for cell in self.runs if cell["density"] < 1}, reverse=True)

    @property
    def main_density(self) -> float | None:
        """The density at which most methods were run."""
        counts = {d: len({c["method"] for c in self.runs if c["density"] == d}) for d in self.densities}
        return max(counts, key=lambda d: counts[d]) if counts else None

    @property
    def dense_methods(self) -> set[str]:
        """Methods without sparse layers."""
        return {m for m, keys in (self.matrix.get("methods") or {}).items() if keys.get("method") == "dense"}

    @property
    def device(self) -> str:
        """What trained the cells."""
        return str(self.runs[0].get("device", "cpu")) if self.runs else "cpu"

    @property
    def updated(self) -> bool:
        """Whether the topology of any run changed."""
        return any(cell.get("topology_updates") for cell in self.runs)

    def steps(self, size: str) -> int:
        """Optimizer steps of runs of this size."""
        return int((self.matrix["sizes"][size].get("train") or {}).get("steps", self.matrix["run"]["train"]["steps"]))

    def rate(self, size: str) -> float:
        """The learning rate that the file gives to cells of this size."""
        own = (self.matrix["sizes"][size].get("optimizer") or {}).get("lr")
        return float(own or self.matrix["run"]["optimizer"]["lr"])

    def cells(self, method: str | None, size: str, density: float | None, lr: float | None = None) -> list[Cell]:
        """Runs of a method; at the rate tuned for it, else at the file's own, unless another is asked for."""
        density = 1.0 if method in self.dense_methods else density
        found = [c for c in self.runs if (c["method"], c["size"], c["density"]) == (method, size, density)]
        if lr is None and ((tuned := [cell for cell in found if cell.get("tuned")]) or self.matrix.get("questions")):
            return tuned  # where questions are asked, other cells are those of the tuning
        wanted = self.rate(size) if lr is None else lr
        return [cell for cell in found if cell["lr"] == wanted]

    def methods(self, size: str, density: float) -> list[str]:
        """Methods that were run at this size and density, dense included, in the file's order."""
        return [method for method in self.matrix.get("methods") or {} if self.cells(method, size, density)]

    def by_seed(
        self, key: str | Callable[[Cell], float | None], method: str | None, size: str, density: float | None,
        lr: float | None = None,
    ) -> dict[int, float]:  # fmt: skip
        """Seed to the value of ``key``, where there is one."""
        read = key if callable(key) else lambda cell: cell.get(key)
        found = {cell["seed"]: read(cell) for cell in self.cells(method, size, density, lr)}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, key: Any, method: str | None, size: str, density: float | None, lr: float | None = None) -> Any:
        """Mean and deviation over seeds; None if nothing is there."""
        return Spread.of(list(self.by_seed(key, method, size, density, lr).values()))

    def difference(self, a: str | None, b: str | None, size: str, density: float) -> Difference | None:
        """Validation loss of ``a`` minus that of ``b``, seed by seed."""
        first, second = (self.by_seed("validation_loss", name, size, density) for name in (a, b))
        return Difference.of(first, second)

    def dense_rates(self, size: str) -> list[float]:
        """Learning rates at which the dense model was run, rising."""
        return list(self.by_rate(self.roles.get("dense"), size, None))

    def best_dense_rate(self, size: str) -> float | None:
        """The one with the lowest mean validation loss."""
        return self.best_rate(self.roles.get("dense"), size, None)

    def by_rate(self, method: str | None, size: str, density: float | None) -> dict[float, Spread]:
        """Learning rate, rising, to the validation loss of the method's runs at it."""
        rates = sorted({cell["lr"] for cell in self.runs if (cell["method"], cell["size"]) == (method, size)})
        spreads = {lr: self.spread("validation_loss", method, size, density, lr) for lr in rates}
        return {lr: spread for lr, spread in spreads.items() if spread is not None}

    def best_rate(self, method: str | None, size: str, density: float | None) -> float | None:
        """The rate with the lowest mean validation loss."""
        means = self.by_rate(method, size, density)
        return min(means, key=lambda lr: means[lr].mean) if means else None

    def rise(self, offset: str) -> Callable[[Cell], float | None]:
        """Held-out loss ``offset`` behind an update minus that right before it, averaged over a cell's updates."""

        def read(cell: Cell) -> float | None:
            gaps = [
                update["losses"][offset] - update["losses"]["before"]
                for update in cell["updates"]
                if update["losses"].get(offset) is not None and update["losses"].get("before") is not None
            ]
            return sum(gaps) / len(gaps) if gaps else None

        return read

    def rise_over_static(self, offset: str = LATER) -> Callable[[Cell], float | None]:
        """``rise`` minus that of the static run of the same seed, on the same batches."""

        def read(cell: Cell) -> float | None:
            static = self.by_seed(self.rise(offset), self.roles.get("static"), cell["size"], cell["density"])
            own = self.rise(offset)(cell)
            return None if own is None or cell["seed"] not in static else own - static[cell["seed"]]

        return read

    def branch_groups(self) -> dict[Group, list[dict[str, Any]]]:
        """(size, base, density) to its branches: ``{seed, step, excess}``, variant to step to nats."""
        groups: dict[Group, list[dict[str, Any]]] = {}
        for cell in self.results["cells"]:
            for branch in cell.get("branches") or []:
                found = {"seed": cell["seed"], "step": branch["step"], "excess": self._excess(branch["losses"])}
                groups.setdefault((cell["size"], cell["method"], cell["density"]), []).append(found)
        return groups

    def _excess(self, losses: dict[str, dict[str, float]]) -> dict[str, dict[int, float]]:
        """Loss over the variant's "no update", by variant and step."""
        excess = {}
        for name, variant in self.matrix["branches"]["variants"].items():
            reference = (variant or {}).get("reference")
            if name in losses and reference in losses:
                both = zip(losses[name].items(), losses[reference].values(), strict=True)
                excess[name] = {int(step): own - other for (step, own), other in both
                                if own is not None and other is not None}  # fmt: skip
        return excess

    @staticmethod
    def branch_seeds(branches: list[dict[str, Any]], variant: str, step: int) -> dict[int, float]:
        """Seed to its branches' mean excess: branches of one run are not independent of each other."""
        values: dict[int, list[float]] = {}
        for branch in branches:
            if (value := branch["excess"].get(variant, {}).get(step)) is not None:
                values.setdefault(branch["seed"], []).append(value)
        return {seed: sum(some) / len(some) for seed, some in values.items()}

    @staticmethod
    def branch_spread(branches: list[dict[str, Any]], variant: str, step: int) -> Spread | None:
        """Mean and deviation over all branches."""
        return Spread.of([branch["excess"].get(variant, {}).get(step) for branch in branches])
