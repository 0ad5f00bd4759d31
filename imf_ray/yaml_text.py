"""Reads and writes YAML. Every reader of YAML in the package uses this module.

YAML gives the structure: lists, dictionaries and quotes. The type of an option decides how an
unquoted value is read, so `007` can be text or a number. Until then it is a `Scalar`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from imf_ray.errors import UserError

MAX_QUOTED_LENGTH = 80
"""Maximum length in characters of the line that an error message quotes."""
_TAG = "tag:yaml.org,2002:"
_WORDS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


@dataclass(frozen=True)
class Scalar:
    """An unquoted value that YAML reads as a number, true, false or null."""

    text: str
    """The value as it was written."""
    value: float | bool | None
    """The value as YAML reads it."""


EMPTY = Scalar("", None)
"""A value that is missing, as after `key:`, or a text without any value."""


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML into dictionaries, lists, strings and `Scalar`s. All keys are strings.

    Args:
        source: the option or the file, with which error messages begin.

    Raises:
        UserError: the text is not valid YAML. The message has line, column and the line itself.
    """
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark, start = error.problem_mark, error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        problem = error.problem or error.context or "it cannot be read"
        if start and start.line != line:
            problem = f"{error.context} (line {start.line + 1}), {problem}"
    except ReaderError as error:
        before = text[: error.position].split("\n")
        line, column = len(before) - 1, len(before[-1])
        problem = f"the character {text[error.position]!r} is not allowed"
    except RecursionError:
        line, column, problem = 0, 0, "lists or dictionaries are nested too deeply"
    else:
        return EMPTY if tree is None else tree
    lines = text.split("\n")[: line + 1]
    while len(lines) > 1 and not lines[-1].strip():  # errors at the end of a file
        lines.pop()
        column = len(lines[-1])
    position = f"line {len(lines)}, column {column + 1}"
    raise UserError(
        f"{source} is not valid YAML in {position}: {problem}. The line is "
        f"{lines[-1][:MAX_QUOTED_LENGTH]!r}. Indent with spaces, and quote text that contains "
        "special characters."
    )


def parse_file(content: bytes, source: str) -> dict[str, Any]:
    """Parse the content of a YAML file whose top level is a dictionary; see `parse_yaml`.

    Raises:
        UserError: the content is not text, is empty, is not valid YAML, or not a dictionary.
    """
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        byte, line = content[error.start], content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source} is not a text file in UTF-8: byte {byte:#04x} in line {line}."
        ) from error
    tree = parse_yaml(text, source)
    if tree == EMPTY:
        raise UserError(f"{source} is empty. Write lines `key: value` into it.")
    if not isinstance(tree, dict):
        raise UserError(f"{source} is not a mapping with lines `key: value`, but {noun(tree)}.")
    return tree


def read_yaml(path: Path, option: str | None = None) -> dict[str, Any]:
    """Read a YAML file whose top level is a dictionary; see `parse_file`.

    Args:
        option: the `key=value` that names the file, if any, for error messages.

    Raises:
        UserError: the file is missing, cannot be read, or is invalid.
    """
    source = f"{option}: " if option else ""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{source}there is no file {path}.") from error
    except IsADirectoryError as error:
        raise UserError(f"{source}{path} is a folder, not a YAML file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{source}{path} cannot be read: {reason}.") from error
    return parse_file(content, f"{source}{path}")


def plain(tree: Any) -> Any:
    """Return a parsed tree with the values that YAML reads, without `Scalar`s."""
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return tree.value if isinstance(tree, Scalar) else tree


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return dictionaries, lists, strings, numbers, booleans and null as a YAML file."""
    return yaml.dump(
        values, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )


def dump_value(value: Any) -> str:
    """Return a value on one line. A string is not quoted; inside a list it is, where needed."""
    if isinstance(value, Scalar):
        return value.text
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, Mapping)):
        return json.dumps(value)
    text = yaml.dump(
        plain(value),
        Dumper=_Dumper,
        default_flow_style=True,
        allow_unicode=True,
        sort_keys=False,
        width=float("inf"),
    )
    return text.rstrip("\n")


def noun(tree: Any) -> str:
    """Return the kind of a parsed value, for error messages."""
    names: dict[type, str] = {list: "a list", dict: "a dictionary", str: "text"}
    return names.get(type(tree), "a single value")


class _Loader(yaml.SafeLoader):
    """Makes `Scalar`s of unquoted numbers, words and null. Keys are always text."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def text_or_scalar(self, node: yaml.ScalarNode) -> str | Scalar:
        """Construct a number, a word or null."""
        if node.style is not None:
            return str(node.value)
        try:
            return Scalar(node.value, _READERS[node.tag.removeprefix(_TAG)](node.value))
        except (KeyError, ValueError) as error:
            raise ConstructorError(None, None, str(error), node.start_mark) from error

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """Construct a dictionary. An anchor's keys are merged in with `<<`."""
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be text, not a list or a dictionary"
                raise ConstructorError(None, None, problem, key.start_mark)
            if key.value in names:
                problem = f"the key {key.value} is given twice"
                raise ConstructorError(None, None, problem, key.start_mark)
            names.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would not read as text, and characters that do not print."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists in full."""
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        """Represent a string."""
        return self.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')


def _int(text: str) -> int:
    return int(text, 0 if text[1:2] == "x" else 10)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_WORD_FORMS = "|".join(f"{word}|{word.title()}|{word.upper()}" for word in _WORDS)
_PATTERNS = {
    "null": r"~|null|Null|NULL|",
    "bool": _WORD_FORMS,
    "int": r"[-+]?[0-9]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": "<<",
}
"""Forms of unquoted values that are not text, as in YAML 1.2: 012 is not octal, 1:30 is text."""
_READERS: dict[str, Callable[[str], float | bool | None]] = {
    "null": lambda _: None,
    "bool": lambda text: _WORDS[text.lower()],
    "int": _int,
    "float": _float,
}


def _text(_: Any, node: yaml.ScalarNode) -> str:
    return str(node.value)


def _list(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


for _kind, _pattern in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)
for _kind in _READERS:
    _Loader.add_constructor(f"{_TAG}{_kind}", _Loader.text_or_scalar)
for _kind in ("str", "merge"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _text)
_Loader.add_constructor(f"{_TAG}seq", _list)
_Loader.add_constructor(f"{_TAG}map", _Loader.mapping)
_Loader.add_constructor(None, yaml.SafeLoader.construct_undefined)
_Dumper.add_representer(str, _Dumper.text)
