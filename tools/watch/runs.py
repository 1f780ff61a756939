"""One run as a page shows it: its files are followed, each by what it holds beyond what was read before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from pretrain.config.yaml_text import read_yaml
from pretrain.errors import UserError
from pretrain.records import Follower, misfit
from pretrain.run_folder.reader import CHECKPOINTS, EVENTS, METRICS, SAMPLES, SETTINGS, TOPOLOGY, RunReader

from ..packages import named
from .checkpoints import Checkpoints
from .columns import VALIDATION, Columns, bucket_size
from .lines import Events, Lines, Samples, Topology, known, text

CHARTED = ("loss", "lr", "grad_norm", "tokens_per_second", "tokens", "mfu", "tflops", "memory_peak_fullest", "density")
"""Columns of ``metrics.jsonl`` that are kept."""
AT_ONCE = 1 << 19
"""Bytes of metrics that are read together; whoever asks for something else meanwhile waits for that long."""
PATIENCE = 1.0
"""Seconds after which whoever asks gets what is read so far."""
OFTEN, SELDOM = 0.4, 2.0
"""Seconds between two looks at files of lines, and at everything else."""


class RunView:
    """What is known of the run in ``folder``. Files are looked at when somebody asks, and seldom enough."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, text(name, 120)
        self.columns = Columns(CHARTED)
        self.epoch = self.left_out = self.out_of_order = 0
        """``epoch``: how often metrics were written anew, as by a run that goes back."""
        self.more = True
        """Whether there are metrics that are not read yet."""
        self._metrics = Follower(folder / METRICS, ("step",))
        self._topology = Topology(folder / TOPOLOGY)
        self.lines: dict[str, Lines] = {
            "events": Events(folder / EVENTS),
            "topology": self._topology,
            "samples": Samples(folder / SAMPLES),
        }
        self._checkpoints = Checkpoints(folder / CHECKPOINTS)
        self._documents: dict[str, Any] = {}
        self._problems: dict[str, str] = {}
        self._read_lines = self._read_rest = 0.0
        self._lock = threading.Lock()

    def news(self, have: dict[str, Any]) -> dict[str, Any]:
        """What whoever holds the tokens ``have``, by section, lacks; sections without news are left out."""
        with self._lock:
            begin = time.monotonic()
            self._refresh()
            while self.more and time.monotonic() - begin < PATIENCE:
                self._refresh()
            found: dict[str, Any] = {"name": self.name, "more": self.more}
            sections = {"metrics": self._metrics_since(have.get("metrics"))}
            for name, lines in self.lines.items():
                sections[name] = lines.since(have.get(name))
            if sections["topology"] is not None:
                sections["topology"]["newest"] = self._topology.newest
            for name, content in {**self._documents, "problems": self._said()}.items():
                mark = f"{hash(repr(content)) & (1 << 64) - 1:x}"
                if have.get(name) != mark:
                    sections[name] = {"token": mark, "content": content}
            return {**found, **{name: section for name, section in sections.items() if section is not None}}

    def window(self, low: float, high: float) -> dict[str, Any]:
        """The metrics of the steps from ``low`` to ``high``, in as many points as a screen has room for."""
        with self._lock:
            begin, end = self.columns.between(low, high)
            size = bucket_size(end - begin)
            return {"size": size, **self.columns.buckets(0, size, begin, end)}

    def read_all(self) -> None:
        """Read what is there already, so that the first page comes at once."""
        while self.more:
            with self._lock:
                self._refresh(waits=False)

    def _refresh(self, waits: bool = True) -> None:
        now = time.monotonic()
        if self.more or now - self._read_lines >= OFTEN or not waits:
            self._attempt(METRICS, self._read_metrics)
            for name, lines in self.lines.items():
                self._attempt(f"{name}.jsonl", lines.poll)
            self._read_lines = now
        if now - self._read_rest >= SELDOM:
            for name, read in _DOCUMENTS.items():
                self._attempt(name, partial(self._look, name, read))
            self._read_rest = time.monotonic()

    def _look(self, name: str, read: Callable[[RunView], Any]) -> None:
        self._documents[name] = read(self)

    def _attempt(self, name: str, read: Callable[[], Any]) -> None:
        """A file that cannot be read, or holds what is not meant to be there, is told on the page and ends nothing."""
        self._problems.pop(name, None)
        try:
            read()
        except (UserError, OSError) as error:
            self._problems[name] = text(error)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            self._problems[name] = text(f"{name} of {self.name} is damaged: {misfit(error)}")

    def _read_metrics(self) -> None:
        self.more = False
        news = self._metrics.poll(AT_ONCE)
        if news.again:
            self.columns.clear()
            self.epoch, self.left_out, self.out_of_order = self.epoch + 1, 0, 0
        self.left_out += news.left_out
        self.out_of_order += self.columns.extend(news.rows)
        self.more = news.more

    def _metrics_since(self, token: Any) -> dict[str, Any] | None:
        columns, rows, size = self.columns, len(self.columns), self.columns.size
        has: list[Any] = token if isinstance(token, list) and len(token) == 4 else [None] * 4
        fits = has[:2] == [self.epoch, size] and all(isinstance(n, int) and n >= 0 for n in has) and has[2] <= rows
        if fits and has[2] == rows:
            return None
        first, validated = (has[2] // size, has[3]) if fits else (0, 0)
        return {
            "token": [self.epoch, size, rows, len(columns.validation)],
            "anew": not fits,
            "first": first,
            "size": size,
            "rows": rows,
            **columns.buckets(first, size),
            VALIDATION: [list(point) for point in columns.validation[validated:]],
            "not_finite": dict(columns.not_finite),
        }

    def _said(self) -> list[str]:
        """What is wrong with the files of this run, a line each."""
        found = list(self._problems.values())
        counts = {METRICS: self.left_out, **{f"{name}.jsonl": lines.left_out for name, lines in self.lines.items()}}
        found += [f"{count:,} lines of {name} cannot be used" for name, count in counts.items() if count]
        if self.out_of_order:
            found.append(f"{self.out_of_order:,} records of {METRICS} do not follow the one before and are left out")
        return list(dict.fromkeys(found))

    # What is looked at as a whole, and sent as a whole where it has changed.

    def status(self) -> dict[str, Any]:
        """How the run is doing, as ``launch status`` tells it, and its ranks.

        Raises:
            UserError: the folder is no run's, or what it holds is damaged.
        """
        if not (self.folder / SETTINGS).is_file():
            return {"state": "waiting", "steps": None, "ranks": None}
        now = time.time()
        status = import_module(named("launch.status")).status_of(self.folder, now)
        ranks, slow = status["ranks"], status["laggard"]
        keys = ("state", "why", "goes_on_with", "step", "steps", "seconds_left", "restarts", "step_seconds")
        hosts = sorted({str(rank["host"]) for rank in ranks})
        phases = sorted({str(rank["phase"]) for rank in ranks})
        places = {name: at for at, name in enumerate(hosts)}, {name: at for at, name in enumerate(phases)}
        return {
            **{key: status[key] for key in keys},
            "laggard": None if slow is None else slow["rank"],
            "hosts": [text(host, 100) for host in hosts],
            "phases": [text(phase, 100) for phase in phases],
            "ranks": [
                [
                    rank["rank"], places[0][str(rank["host"])], rank["step"], places[1][str(rank["phase"])],
                    round(now - rank["moved_seconds"], 1), round(now - rank["alive_seconds"], 1),
                ]
                for rank in ranks
            ],
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """The few settings that a page explains itself by."""
        if not (self.folder / SETTINGS).is_file():
            return {}
        content = read_yaml(self.folder / SETTINGS)
        wanted = {
            "sparsity": ("method", "density", "final_density", "block", "update_interval", "stop_fraction"),
            "model": ("family",), "evaluation": ("interval", "prompts"), "checkpoint": ("interval",),
            "train": ("precision",),
        }  # fmt: skip
        found = {}
        for section, keys in wanted.items():
            given = content.get(section)
            if not isinstance(given, dict):
                continue
            for key in keys:
                if key in given:
                    found[f"{section}.{key}"] = text(given[key], 60)
        return found

    def memory(self) -> dict[str, Any] | None:
        """memory.json: bytes at rest of the fullest rank by kind, and what dense layers would take."""
        report = RunReader(self.folder).memory()
        if not report:
            return None
        ranks, layers = report["measured_per_rank"], report["sparse_layers"]
        totals = [sum(known(size) or 0.0 for kinds in rank.values() for size in kinds.values()) for rank in ranks]
        fullest = totals.index(max(totals))
        return {
            "ranks": len(ranks),
            "rank": fullest,
            "parts": {
                text(part, 40): {text(kind, 40): known(size) for kind, size in kinds.items()}
                for part, kinds in ranks[fullest].items()
            },
            "sparse": known(layers["measured"]),
            "dense": known(layers["planned_if_dense"]),
        }

    def checkpoints(self) -> dict[str, Any]:
        """See ``Checkpoints.found``."""
        return self._checkpoints.found()


_DOCUMENTS: dict[str, Callable[[RunView], Any]] = {
    "status": RunView.status,
    "settings": RunView.settings,
    "memory": RunView.memory,
    "checkpoints": RunView.checkpoints,
}


def names_of(folders: list[Path]) -> list[str]:
    """The shortest names by which the run folders are told apart: their last parts."""
    parts = [path.absolute().parts for path in folders]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in folders]
