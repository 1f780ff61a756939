"""From ``--input`` and ``--dataset`` to an ordered list of sources, and what was passed over on the way."""

from __future__ import annotations

import argparse
import fnmatch
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.errors import DataError
from pretrain.paths import path_text

from .formats import FORMATS, HEAD, SUFFIXES, compression_of, kind_by_name, rows_of, suffix_of
from .sources import Source
from .walk import FOUND, NAMED, Entry, PassedOver, entries


@dataclass(frozen=True)
class Inputs:
    """What will be read."""

    sources: list[Source]
    passed: PassedOver

    def __str__(self) -> str:
        """What is read and what is not, in one line."""
        first = self.sources[0]
        if first.kind == "dataset":
            split = first.dataset[1] if first.dataset else None
            return f"reading dataset {first.path}, split {split or 'unnamed'}, in {len(self.sources):,} parts"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(s.kind for s in self.sources).items())
        size = sum(source.size for source in self.sources)
        line = f"reading {len(self.sources):,} files ({kinds}; {size:,} bytes)"
        if empty := sum(source.size == 0 and source.path != "-" for source in self.sources):
            line += f", {empty:,} of them empty"
        return line + (f"; passed over {self.passed}" if self.passed.counts else "")

    def summary(self) -> dict[str, Any]:
        """The same for ``--json``."""
        return {"files": len(self.sources), "passed_over": dict(sorted(self.passed.counts.items()))}


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what to read."""
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input", nargs="+", action="extend", type=path_text, default=[], metavar="PATH",
        help="files, folders, glob patterns (quote them; ** goes into sub-folders), or - for standard input",
    )  # fmt: skip
    group.add_argument(
        "--include", nargs="+", action="extend", metavar="GLOB", help="take files whose name fits one of these"
    )
    group.add_argument(
        "--exclude", nargs="+", action="extend", default=[], metavar="GLOB", help="leave out paths or names that fit"
    )
    group.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="default: by the file's name")
    group.add_argument(
        "--dataset", type=path_text, help="name on the Hugging Face hub, or a local path, read through `datasets`"
    )
    group.add_argument("--dataset-config", metavar="NAME", help="configuration of the dataset, such as en")
    group.add_argument("--split", help="split of the dataset (default: train, or the only one that was saved)")
    group.add_argument("--text-column", help="column that holds the text (default: text)")
    group.add_argument("--template", help=r"text made of several columns, such as '{title}\n\n{text}'")
    group.add_argument(
        "--text-mode", choices=("file", "line"), help="in text files, one document per file (default) or per line"
    )


def find_inputs(args: argparse.Namespace) -> Inputs:
    """Every source the options name, in order and each once.

    Raises:
        DataError: nothing was named, a name fits no file, or an option has no effect on what was named.
    """
    if bool(args.input) == bool(args.dataset):
        raise DataError(
            "expected either --input PATH ... or --dataset NAME, found " + ("both" if args.input else "none")
        )
    passed = PassedOver()
    if args.dataset:
        from .hub import dataset_sources

        _refuse(args, "reads --input only, and --dataset was given", "include", "exclude", "format", "text_mode")
        sources = dataset_sources(args.dataset, args.dataset_config, args.split)
    else:
        _refuse(args, "is for --dataset, and --input was given", "dataset_config", "split")
        sources = _files(args, passed)
    _check_options(args, sources)
    return Inputs(sources, passed)


def _refuse(args: argparse.Namespace, why: str, *names: str) -> None:
    for name in names:
        if getattr(args, name) not in (None, [], "auto"):
            raise DataError(f"--{name.replace('_', '-')} {why}, so it would have no effect; leave it out")


def _check_options(args: argparse.Namespace, sources: Sequence[Source]) -> None:
    """Refuse what none of the sources would look at."""
    if args.template is not None:
        _refuse(args, "stands beside --template, which names its columns itself", "text_column")
    if all(source.kind == "text" for source in sources):
        _refuse(args, "is for records with columns, and every input is plain text", "text_column", "template")
    if not any(source.kind == "text" for source in sources):
        _refuse(args, "is for text files, and no input is one", "text_mode")
    if all(source.path == "-" for source in sources):
        _refuse(args, "chooses among files, and only standard input was given", "include", "exclude")
        if rows_of(kind := sources[0].kind) is not None:
            raise DataError(f"--format {kind} needs files: {kind.capitalize()} cannot be read from standard input")


def _files(args: argparse.Namespace, passed: PassedOver) -> list[Source]:
    chosen: dict[object, str] = {}
    for name in args.input:
        here = PassedOver()
        named = [Entry("-", NAMED)] if name == "-" else entries(name, here)
        wanted = [entry for entry in named if entry.path == "-" or _wanted(entry, args, here)]
        # A list of files may come from the shell: that it names some to be left out is no mistake.
        if not wanted and (len(args.input) == 1 or not os.path.isfile(name)):
            raise DataError(_nothing(name, args.include, here))
        chosen.update(_first_spellings(wanted, chosen, here))
        passed.update(here)
    if not chosen:
        raise DataError(f"--input names no file to read; passed over {passed}")
    return [_inspect(path, args.format) for path in chosen.values()]


def _first_spellings(wanted: Iterable[Entry], chosen: dict[object, str], passed: PassedOver) -> dict[object, str]:
    """Files that are not in ``chosen``, sorted by path, each by a name of its own rather than through a link."""
    new: dict[object, str] = {}
    for entry in sorted(wanted, key=lambda entry: (entry.linked, entry.path)):
        identity = _identity(entry.path)
        if identity in chosen or identity in new:
            passed.add("named twice", entry.path)
        else:
            new[identity] = entry.path
    return dict(sorted(new.items(), key=lambda item: item[1]))


def _identity(path: str) -> object:
    """Equal for two names of one file: spelled differently, through a link, or hard-linked."""
    if path == "-":
        return path
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 and status.st_ino else os.path.realpath(path)


def _excluded(path: str, patterns: Sequence[str]) -> bool:
    name = os.path.basename(path)
    return any(fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _wanted(entry: Entry, args: argparse.Namespace, passed: PassedOver) -> bool:
    name = os.path.basename(entry.path)
    reason = None
    if _excluded(entry.path, args.exclude):
        reason = "left out by --exclude"
    elif args.include and not any(fnmatch.fnmatch(name, pattern) for pattern in args.include):
        reason = "that --include does not fit"
    elif entry.how != NAMED and _own(entry.path):
        reason = "written by these tools"
    elif entry.how == FOUND and not args.include and kind_by_name(name) is None:
        reason = suffix_of(name) or "without a suffix"
    if reason:
        passed.add(reason, entry.path)
    return reason is None


def _own(path: str) -> bool:
    """Whether a file in a folder is no text but what these tools wrote there: an output may stand beside its input."""
    folder, name = os.path.split(path)
    if name.endswith((".manifest.json", ".rejects.jsonl", ".card.json")):
        return True
    if folder.endswith((".work", ".work.done")) and os.path.exists(os.path.join(folder, "run.json")):
        return True
    stem = path.removesuffix(".json")
    return stem != path and os.path.exists(f"{stem}.model") and os.path.exists(f"{stem}.vocab")


def _nothing(name: str, include: Sequence[str] | None, passed: PassedOver) -> str:
    if os.path.exists(name) or passed.counts:
        wanted = ", ".join(include) if include else ", ".join(SUFFIXES) + " (also .gz, .bz2, .xz, .zst)"
        seen = f"; passed over {passed}" if passed.counts else ""
        return f"input {name} holds no file named {wanted}{seen}; choose others with --include and --exclude"
    return f"input {name} does not exist and fits no file; expected a file, a folder or a quoted glob pattern"


def _inspect(path: str, given: str) -> Source:
    if path == "-":
        return Source(path="-", kind="jsonl" if given == "auto" else given)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            status = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"input {path} cannot be read: {error.strerror}") from None
    kind = given if given != "auto" else kind_by_name(path) or "text"
    return Source(
        path=path,
        kind=kind,
        compression=compression_of(head),
        size=status.st_size,
        modified=status.st_mtime_ns,
    )
