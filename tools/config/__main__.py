"""Run files: their schema and keys, what one comes to and where from, how two differ, and new ones.

python -m tools.config show configs/60m.yaml train.steps=100
python -m tools.config diff configs/60m.yaml runs/60m
python -m tools.config new run.yaml --model 60m --data data/c4/train --gpu H100 --gpus 8 --tokens 1.2B
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from pretrain.command import program, told
from pretrain.errors import UserError
from pretrain.paths import path_argument
from pretrain.screen import on_screen, refuse

from ..packages import named
from .keys import REQUIRED, Key, all_keys
from .page import kind_words, page
from .schema import schema

# What plans is imported where it is called: it brings torch along.


def parser_of(command: str) -> argparse.ArgumentParser:
    """The command line of one command."""
    about = ABOUT[command]
    called, description = program(named("tools.config"), command), f"{about[0].upper()}{about[1:]}."
    made = argparse.ArgumentParser(prog=called, description=description)
    made.add_argument("--json", action="store_true", help="print JSON")
    if command == "show":
        made.add_argument("file", type=path_argument, metavar="FILE", help="run file, or run folder")
        made.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=100")
    if command == "diff":
        for name in ("A", "B"):
            made.add_argument(name, type=path_argument, help="run file, or run folder")
    if command == "new":
        from .ask import add_options

        add_options(made)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    front = argparse.ArgumentParser(
        prog=program(named("tools.config")), formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(f"{name:<8}{about}" for name, about in ABOUT.items()),
    )  # fmt: skip
    front.add_argument("command", choices=COMMANDS, help="the command; COMMAND --help says more of each")
    command = words[0] if words[:1] and words[0] in COMMANDS else front.parse_args(words[:1]).command
    options = parser_of(command).parse_intermixed_args(words[1:])
    try:
        print(COMMANDS[command](options))
    except UserError as error:
        return refuse(error)
    return 0


def _schema(options: argparse.Namespace) -> str:
    return json.dumps(schema(), indent=1)


def _keys(options: argparse.Namespace) -> str:
    return json.dumps([_plain(key) for key in all_keys()]) if options.json else page()


def _plain(key: Key) -> dict[str, Any]:
    default = {} if key.default is REQUIRED else {"default": key.default}
    return {
        "key": key.name, "type": kind_words(key.kind), "optional": key.optional, "required": not default, **default,
        "choices": key.choices, "own": key.own, "meaning": key.meaning, "on_resume": key.on_resume,
    }  # fmt: skip


def _show(options: argparse.Namespace) -> str:
    from .origin import resolve
    from .show import derived, shown

    found = resolve(options.file, options.overrides)
    if not options.json:
        return shown(found)
    values = {
        name: {"value": value, "from": dataclasses.asdict(found.origins[name])} for name, value in found.values.items()
    }
    return json.dumps({"file": str(found.path), "values": values, "derived": derived(found)})


def _diff(options: argparse.Namespace) -> str:
    from .show import difference, in_words

    changes = difference(options.A, options.B)
    if options.json:
        return json.dumps([{"key": one.key, "a": one.old, "b": one.new, "on_resume": one.allowed} for one in changes])
    return "\n".join(map(in_words, changes)) or "no difference"


def _new(options: argparse.Namespace) -> str:
    from .ask import wanted_of
    from .new import plan, summary, write

    wanted = wanted_of(options)
    found = plan(wanted)
    write(found, wanted, options.file)
    if options.json:
        budget = found.budget.to_json()
        layout = found.best.to_json()
        return json.dumps({"file": str(options.file), "layout": layout, "budget": budget, "remarks": found.remarks})
    lines = [f"wrote {options.file}", summary(found, wanted), *found.remarks]
    start = f"deepspeed --num_gpus {wanted.gpus} --module pretrain {options.file}"
    lines += [f"to see every setting: {told('config', 'show', str(options.file))}", f"to start it: {start}"]
    return "\n".join(lines)


ABOUT = {
    "schema": "print the JSON schema of run files, for editors",
    "keys": "print a page of all keys: type, default, choices, meaning, whether a run that goes on may change it",
    "show": "print every setting of a run file, or of a run folder, and where its value comes from",
    "diff": "print in which settings two run files differ once bases and defaults are filled in",
    "new": "write a run file with the fastest layout that fits; asks for what is not given",
}
COMMANDS = {"schema": _schema, "keys": _keys, "show": _show, "diff": _diff, "new": _new}


if __name__ == "__main__":
    sys.exit(on_screen(main))
