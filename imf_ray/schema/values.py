"""Converts parsed YAML to the types of options, and builds the configuration from them.

The type of an option decides how its value is read. Text is taken literally, as it is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin

from imf_ray.errors import UserError
from imf_ray.schema.options import sections
from imf_ray.yaml_text import EMPTY, Scalar, dump_value, parse_yaml, plain

T = TypeVar("T")
NULL = "null"
"""Text that stands for None in an option that may be null, also if the option takes text."""
NOUNS = {bool: "true or false", int: "an integer", float: "a number", str: "text in UTF-8"}
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(_[0-9]{3})+(?![_0-9])")
TRUE_WORDS, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")


def parse_text(key: str, kind: Any, text: str) -> Any:
    """Return the value in `key=text` on a command line, for `convert`.

    An option that takes text gets the text as it is. Other values are written in YAML.

    Args:
        kind: type of the option.

    Raises:
        UserError: the text is empty, or not valid YAML.
    """
    if _without_none(kind) is str:
        return text
    tree = parse_yaml(text, f"{key}={text}")
    if tree == EMPTY:
        raise _no_value(f"{key}={text}")
    return tree


def convert(key: str, kind: Any, tree: Any) -> Any:
    """Return a parsed value with the type of the option `key`.

    Args:
        kind: type of the option: bool, int, float, str, a list or dictionary of them, or one of
            these or None.
        tree: a value of `parse_yaml`, or a value that has its type already.

    Raises:
        UserError: the value has another type.
    """
    if tree == EMPTY:
        raise _no_value(key)
    if kind != _without_none(kind) and _is_null(kind, tree):
        return None
    return _convert(f"{key}={dump_value(tree)}", key, kind, tree)


def _convert(label: str, key: str, kind: Any, tree: Any) -> Any:
    """Convert a value, or an item of one; `label` is `key=value`, for error messages."""
    or_null = " or null" if kind != _without_none(kind) else ""
    kind = _without_none(kind)
    if get_origin(kind) is list:
        if not isinstance(tree, list):
            raise UserError(f"{label} is not a list. Write {key}=[{_list_items(tree)}].")
        (item_kind,) = get_args(kind)
        return [_convert(label, key, item_kind, item) for item in tree]
    if get_origin(kind) is dict:
        if not isinstance(tree, Mapping):
            raise UserError(f"{label} is not a dictionary. Write {key}={{name: value}}.")
        _, value_kind = get_args(kind)
        return {name: _convert(label, key, value_kind, value) for name, value in tree.items()}
    if kind is Any:
        return plain(tree)
    try:
        return _CONVERTERS[kind](tree)
    except (TypeError, ValueError, OverflowError) as error:
        shown = dump_value(tree)
        item = "" if label == f"{key}={shown}" else f": {shown}"
        raise UserError(f"{label}{item} must be {NOUNS[kind]}{or_null}.") from error


def build(section: type[T], options: Mapping[str, Any], prefix: str = "") -> T:
    """Make a section of the configuration; options that are not given get their defaults.

    An optional section is None if none of its options is given.

    Args:
        section: a dataclass of the schema.
        options: values by the dotted names of their options.
        prefix: dotted name of the section, with a dot at its end; empty at the top level.

    Raises:
        UserError: a value breaks a rule of its option.
    """
    nested, values = sections(section), {}
    for item in fields(section):  # type: ignore[arg-type]
        key = f"{prefix}{item.name}"
        if item.name not in nested:
            if key in options:
                values[item.name] = options[key]
        elif item.default is not None or any(name.startswith(f"{key}.") for name in options):
            values[item.name] = build(nested[item.name], options, f"{key}.")
    return section(**values)


def _list_items(tree: Any) -> str:
    """Return the items, without brackets, of the list that was probably meant."""
    if isinstance(tree, Mapping):  # {a, b}
        items = list(tree) if not any(map(plain, tree.values())) else []
    else:
        items = [] if plain(tree) is None else re.split(r"[\s,;\[\]{}()\"']+", dump_value(tree))
    return ", ".join(filter(None, items)) or "VALUE, ..."


def _no_value(item: str) -> UserError:
    return UserError(f"{item} has no value. Text after # is a comment unless it is quoted.")


def _without_none(kind: Any) -> Any:
    """Return the type X of `X | None`, and any other type unchanged."""
    if type(None) not in get_args(kind):
        return kind
    return next(part for part in get_args(kind) if part is not type(None))


def _is_null(kind: Any, tree: Any) -> bool:
    if _without_none(kind) is str:
        return tree is None or getattr(tree, "text", tree) == NULL
    return plain(tree) is None


def _to_text(tree: Any) -> str:
    text = tree.text if isinstance(tree, Scalar) else tree
    if not isinstance(text, str) or tree == EMPTY:
        raise TypeError
    text.encode()  # an escape in YAML may stand for half a character
    return text


def _to_int(tree: Any) -> int:
    value = plain(tree)
    if isinstance(value, (bool, float)) or not _is_plain(value):
        raise TypeError
    return int(value)


def _to_float(tree: Any) -> float:
    value = plain(tree)
    if isinstance(value, bool) or not _is_plain(value) or math.isnan(number := float(value)):
        raise TypeError
    return number


def _is_plain(value: Any) -> bool:
    """Return False for a text that Python reads as a number, but people do not.

    These are dates such as 2024_1_13, and digits of other scripts.
    """
    if not isinstance(value, str):
        return True
    return value.isascii() and ("_" not in value or _THOUSANDS.match(value) is not None)


def _to_bool(tree: Any) -> bool:
    word = dump_value(tree).lower()
    if word not in (*TRUE_WORDS, *_FALSE):
        raise ValueError
    return word in TRUE_WORDS


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_text,
}
