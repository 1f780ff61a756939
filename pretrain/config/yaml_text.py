"""YAML as people expect it, with every surprise of YAML 1.1 refused in one line.

Keys are text. ``1e-3`` is a number; ``0123`` (83 in YAML 1.1) and ``1:30`` (90) are refused; a date is text. A key
given twice, a key without a value (write ``null``), and templates that were not filled in are errors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pretrain import outside
from pretrain.errors import ConfigError, nearest

LARGEST = 100_000
"""Values that one text may hold, anchors counted as often as they are used: a few lines can stand for billions."""
DEEPEST = 32
"""Levels that mappings and lists may be nested."""

_INTEGER, _FLOAT, _OLD = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "!old-number"
_REPLACED = (_INTEGER, _FLOAT, "tag:yaml.org,2002:timestamp")
_NUMBERS = {
    _INTEGER: r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)",
    _FLOAT: r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+|"
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
    _OLD: r"[-+]?0[0-9_]+|[-+]?0b[01_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?",
}


class _Loader(yaml.SafeLoader):
    """Numbers as above; mappings with text as keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in pairs if tag not in _REPLACED]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that ``_Loader`` would read as something else."""


_Dumper.yaml_implicit_resolvers = {key: list(pairs) for key, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _tag, _pattern in _NUMBERS.items():
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), list("-+.0123456789"))


def to_yaml(content: dict[str, Any], short: bool = False) -> str:
    """Text that ``parse_yaml`` reads back as ``content``: plain dicts, lists and scalars.

    Args:
        short: mappings and lists of scalars on a line each.
    """
    return str(
        yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, default_flow_style=None if short else False)
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file that holds a mapping.

    Raises:
        ConfigError: the file is missing, unreadable, no YAML, or no mapping.
    """
    try:
        text = outside.read_bytes(path, 16 * outside.MEGABYTE).decode("utf-8")
    except FileNotFoundError:
        siblings = [other.name for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        ours = _shipped(path)
        where = f"; the one that comes with SMET is {ours}" if ours else nearest(path.name, siblings)
        raise ConfigError(f"{path} does not exist, expected a YAML run file{where}") from None
    except IsADirectoryError:
        inside = f"; the run in it has {path / 'config.yaml'}" if (path / "config.yaml").is_file() else ""
        raise ConfigError(f"{path} is a folder, expected a YAML run file{inside}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text ({error}), expected a YAML run file") from None
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{path} holds {found}, expected a mapping of sections")
    return content


def _shipped(path: Path) -> Path | None:
    """The file of the project that ``path`` is in a checkout, for those who stand elsewhere: ``configs/60m.yaml``."""
    if path.parts[:1] != ("configs",) or ".." in path.parts:
        return None
    root = Path(__file__).resolve().parents[2]
    places = (root.joinpath(name, *path.parts[1:]) for name in ("smet_configs", "configs"))
    return next((place for place in places if place.is_file()), None)


def key_lines(path: Path) -> dict[str, int]:
    """Dotted name of every key of the YAML file ``path``, which ``read_yaml`` takes, to its line, counted from 1."""
    found: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            found[f"{prefix}{key.value}"] = key.start_mark.line + 1
            walk(value, f"{prefix}{key.value}.")

    walk(_Loader(outside.read_bytes(path, 16 * outside.MEGABYTE).decode("utf-8")).get_single_node(), "")
    return found


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; ``where`` names its origin in the error.

    Raises:
        ConfigError: ``text`` is no YAML, or surprising YAML; in one line with the line number.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_plain(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{where}{line} is no valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply, expected at most {DEEPEST} levels") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is no valid YAML: {' '.join(str(error).split())}") from None


def _require_plain(root: yaml.Node) -> None:
    """Refuse what is YAML and surely not meant; linear in the text, however often its anchors are used."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, level: int) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise _problem(node, "an anchor that holds itself")
        if level > DEEPEST:
            raise _problem(node, f"nested more than {DEEPEST} levels deep")
        open_nodes.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _require_keys(node, level)
            inside = [value for _, value in node.value]
        else:
            inside = node.value if isinstance(node, yaml.SequenceNode) else []
            if node.tag == _OLD:
                raise _problem(node, _old_number(node.value))
        total = 1 + sum(size(value, level + 1) for value in inside)
        if total > LARGEST:
            raise _problem(node, f"more than {LARGEST:,} values, expected the settings of a run")
        open_nodes.discard(id(node))
        sizes[id(node)] = total
        return total

    size(root, 0)


def _require_keys(node: yaml.MappingNode, level: int) -> None:
    seen = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            kind = "a mapping" if isinstance(key, yaml.MappingNode) else "a list"
            unfilled = "; if this is a template's {{ ... }}, it was not filled in"
            raise _problem(key, f"{kind} where a key was expected{unfilled}")
        if key.value in seen:
            raise _problem(key, f"key '{key.value}' twice")
        seen.add(key.value)
        if not key.value:
            raise _problem(key, "a value without a key")
        empty = isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None
        if empty and level > 0 and node.flow_style is False:  # an empty section is fine, and {a} is short for {a: null}
            raise _problem(key, f"key '{key.value}' has no value; write null to leave it at its default")


def _old_number(text: str) -> str:
    if ":" in text:
        return f"{text} is a number to base 60 in YAML 1.1; write it out, or quote it to make it text"
    if "b" in text:
        return f"{text} is a binary number in YAML 1.1; write it in decimal, or quote it to make it text"
    plain = text.replace("_", "").lstrip("-+").lstrip("0") or "0"
    return f"{text} may be octal (YAML 1.1) or decimal; write {plain} if it is decimal, or quote it to make it text"


def _problem(node: yaml.Node, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)
