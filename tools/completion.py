"""Completion of smet in bash or zsh: prints a script for the shell to read.

    source <(smet completion bash)      # in ~/.bashrc
    source <(smet completion zsh)       # in ~/.zshrc

Commands, options, their choices, keys of run files and file names are completed. A key press starts no Python: what
there is to complete is in the script.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pretrain.command import program
from pretrain.screen import on_screen

WORDS_FILE = Path(__file__).with_suffix(".json")
"""Made from the parsers of all commands (tests/tools/completion_words.py)."""

BASH = """
_smet() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} path= found= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case " $(_smet_words "$path") " in
            *" ${COMP_WORDS[i]} "*) path="${path:+$path }${COMP_WORDS[i]}" ;;
            *) break ;;
        esac
    done
    case $current in
        -*) found=$(_smet_options "$path") ;;
        *)
            found=$(_smet_values "$path $before")
            if [ -z "$found" ]; then
                [ "$i" = "$COMP_CWORD" ] && found=$(_smet_words "$path")
                found="$found $(_smet_keys "$path")"
            fi
            ;;
    esac
    COMPREPLY=($(compgen -W "$found" -- "$current"))
    case ${COMPREPLY[0]} in *=) compopt -o nospace ;; esac
}
complete -o bashdefault -o default -F _smet smet
"""

ZSH = """
_smet() {
    local current=${words[CURRENT]} before=${words[CURRENT-1]} route= i
    local -a found
    for ((i = 2; i < CURRENT; i++)); do
        [[ " $(_smet_words "$route") " == *" ${words[i]} "* ]] || break
        route="${route:+$route }${words[i]}"
    done
    if [[ $current == -* ]]; then
        found=("${(@f)$(_smet_told "$route -")}")
        _describe -o option found
        return
    fi
    found=(${=$(_smet_values "$route $before")})
    if (( $#found )); then
        compadd -a found
        return
    fi
    if (( i == CURRENT )) && [[ -n $(_smet_words "$route") ]]; then
        found=("${(@f)$(_smet_told "$route")}")
        _describe command found
        [[ -n $(_smet_told "$route -") ]] || return  # a group takes nothing else
    fi
    found=(${=$(_smet_keys "$route")})
    (( $#found )) && compadd -S '' -a found
    _files
}
if [ "$funcstack[1]" = _smet ]; then
    _smet "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
    compdef _smet smet
fi
"""


def script(shell: str) -> str:
    """The script for ``bash`` or ``zsh``."""
    commands: dict[str, dict[str, Any]] = json.loads(WORDS_FILE.read_text(encoding="utf-8"))
    parts = [
        _function("_smet_words", ((path, " ".join(_below(path, commands))) for path in ["", *commands])),
        _function("_smet_values", _values(commands)),
        _function(
            "_smet_keys",
            [("|".join(shlex.quote(path) for path, one in commands.items() if one.get("overrides")),
              " ".join(f"{key}=" for key in keys()))],
            quoted=True,
        ),
    ]  # fmt: skip
    if shell == "bash":
        options = ((path, " ".join(one.get("options", {}))) for path, one in commands.items())
        return "".join([*parts, _function("_smet_options", options), BASH.lstrip()])
    return "".join(["#compdef smet\n", *parts, _function("_smet_told", _described(commands)), ZSH.lstrip()])


def keys() -> list[str]:
    """Keys of a run file, as overrides name them: ``train.steps``."""
    from pretrain.config import RunConfig
    from pretrain.models.llama.config import LlamaConfig

    return sorted([*_keys(RunConfig, ""), *_keys(LlamaConfig, "model.")])


def _keys(kind: type, before: str) -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        inner = hints[field.name]
        if isinstance(inner, type) and is_dataclass(inner):
            yield from _keys(inner, f"{before}{field.name}.")
        else:
            yield before + field.name


def _below(path: str, commands: dict[str, Any]) -> list[str]:
    """The words that may follow ``path``."""
    parts = path.split()
    return [other.split()[-1] for other in commands if other.split()[:-1] == parts]


def _values(commands: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for path, one in commands.items():
        for flag, choices in one.get("values", {}).items():
            yield f"{path} {flag}", " ".join(choices)


def _described(commands: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Options of each command behind ``COMMAND -``, and the commands below it, each with what it is for."""
    for path in ["", *commands]:
        words = {word: commands[f"{path} {word}".strip()]["help"] for word in _below(path, commands)}
        yield path, _lines(words)
        yield f"{path} -", _lines(commands.get(path, {}).get("options", {}))


def _lines(described: dict[str, str]) -> str:
    return "\n".join(f"{word}:{text}" if text else word for word, text in described.items())


def _function(name: str, cases: Any, quoted: bool = False) -> str:
    """A function of the shell that prints what belongs to its argument."""
    lines = [
        f"        {pattern if quoted else shlex.quote(pattern)}) printf '%s\\n' {shlex.quote(text)} ;;"
        for pattern, text in cases
        if text
    ]
    return "\n".join([f"{name}() {{", '    case "$1" in', *lines, "    esac", "}", ""])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program(f"{__package__}.completion"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=["bash", "zsh"])
    print(script(parser.parse_args(arguments).shell), end="")
    return 0


if __name__ == "__main__":
    sys.exit(on_screen(main))
