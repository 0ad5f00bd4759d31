"""Declares options: dataclass fields with rules (bounds, choices) and a text for `--help`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from imf_ray.errors import UserError

COMMANDS = (
    "demo",
    "collect",
    "dataset",
    "train",
    "tune",
    "status",
    "board",
    "report",
    "evaluate",
    "compare",
    "export",
)
"""All commands of the package, in the order in which a project uses them."""

METADATA_KEY = "option"
DEFAULT_CAMERAS = ["r_vis", "top", "front"]
"""Default of the cameras that are recorded and that a policy sees."""


@dataclass(frozen=True)
class Option:
    """The rules of one option, or of all options of a section."""

    help: str = ""
    """Sentences for `--help`: meaning, unit, and meaning of null."""
    min: float | None = None
    """Minimum; the value must be greater than or equal to it."""
    above: float | None = None
    """Lower bound; the value must be greater than it."""
    below: float | None = None
    """Upper bound; the value must be less than it."""
    reason: str = ""
    """Reason for the bounds, for the error message."""
    choices: Sequence[str] | str = ()
    """Allowed values, or `module:NAME` of a registry. Then the registry's keys and the default are
    allowed. The registry is imported only for `--help` and to check a value other than the
    default."""
    resumable: bool | None = None
    """True if the value may change when a run resumes; None uses the section's rule."""
    sweepable: bool | None = None
    """True if a search space may vary the option; None uses the section's rule."""
    match_training: bool = False
    """True if a policy must be evaluated with the value that it was trained with."""
    commands: Sequence[str] | None = None
    """Commands that use the option; None uses the section's rule."""
    may_be_empty: bool = False
    """True if the empty text is a valid value."""
    is_path: bool = False
    """True if the value is a path, in which environment variables are replaced."""
    is_folder_name: bool = False
    """True if the value is the name of one folder, which is no path."""
    default: Any = None
    """Default value; set by `option`."""
    kind: Any = None
    """Type of the value; set by `walk_options`."""

    def choice_names(self) -> tuple[str, ...]:
        """Return the allowed values; empty if any value of the type is allowed."""
        if not isinstance(self.choices, str):
            return tuple(self.choices)
        return tuple(dict.fromkeys([self.default, *load_registry(self.choices)]))

    def check(self, key: str, value: Any) -> None:
        """Check a value of the option `key` against bounds and choices.

        Raises:
            UserError: the value breaks a rule.
        """
        if isinstance(value, list) and "" in value:
            raise UserError(f"{key}={value} has an empty item. Write {key}=[VALUE, ...].")
        if value == "" and not self.may_be_empty:
            raise UserError(f"{key} is empty. Set it with {key}=VALUE.")
        if value is None or value == self.default:
            return
        if self.choices and value not in (names := self.choice_names()):
            raise UserError(f"{key}={value!r} is unknown; choose one of {', '.join(names)}.")
        problem = self._bound_problem(value)
        if problem:
            raise UserError(f"{key}={value} {problem}{self.reason and f': {self.reason}'}.")

    def _bound_problem(self, value: Any) -> str | None:
        """Return the bound that the value breaks, such as 'must be positive', or None."""
        if self.min is not None and self.below is not None:
            in_range = self.min <= value < self.below
            return None if in_range else f"must lie in [{self.min:g}, {self.below:g})"
        if self.min is not None and value < self.min:
            return f"must be at least {self.min:g}"
        if self.above is not None and value <= self.above:
            return f"must be {'positive' if self.above == 0 else f'above {self.above:g}'}"
        if self.below is not None and value >= self.below:
            return f"must be below {self.below:g}"
        return None

    def within(self, section: Option) -> Option:
        """Return a copy of this option with the rules that it inherits from its section."""
        inherited = {
            rule: getattr(section, rule)
            for rule in ("resumable", "sweepable", "commands")
            if getattr(self, rule) is None
        }
        return dataclasses.replace(self, **inherited)


def load_registry(name: str) -> Any:
    """Import and return the registry `module:NAME`.

    The import is at run time, because the schema must not depend on the registry's package.
    """
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def option(default: Any, help: str, **rules: Any) -> Any:
    """Declare a dataclass field that is an option.

    Args:
        default: the default value; a list or a dict is copied for each instance.
        help: see `Option.help`.
        rules: other fields of `Option`.
    """
    metadata = {METADATA_KEY: Option(help, default=default, **rules)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, **rules: Any) -> Any:
    """Declare a dataclass field that is a section of options.

    Args:
        kind: the dataclass of the section.
        rules: fields of `Option` that all options of the section inherit.
    """
    help = (kind.__doc__ or "").partition("\n\n")[0]
    return field(default_factory=kind, metadata={METADATA_KEY: Option(help, **rules)})


def check_options(name: str, values: Any) -> None:
    """Check the values of one section against the rules of its options.

    Args:
        name: dotted name of the section; empty at the top level.
        values: the dataclass instance of the section.

    Raises:
        UserError: a value breaks a rule.
    """
    nested = sections(type(values))
    for item in fields(values):
        if item.name not in nested:
            key = f"{name}.{item.name}" if name else item.name
            item.metadata[METADATA_KEY].check(key, getattr(values, item.name))


def walk_options(root: type, rules: Option, prefix: str = "") -> Iterator[tuple[str, Option]]:
    """Yield the dotted name and the option of each field of a dataclass and its sections.

    Args:
        root: the dataclass of a section.
        rules: the rules that the options of `root` inherit.
        prefix: dotted name of the section `root`, with a dot at its end; empty at the top level.
    """
    nested, kinds = sections(root), get_type_hints(root)
    for item in fields(root):
        current = item.metadata[METADATA_KEY].within(rules)
        if item.name in nested:
            yield from walk_options(nested[item.name], current, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, dataclasses.replace(current, kind=kinds[item.name])


def sections(root: type) -> dict[str, type]:
    """Return the classes of the fields that are sections, by name, including optional sections."""
    hints = get_type_hints(root).items()
    return {
        name: kind
        for name, hint in hints
        for kind in (hint, *get_args(hint))
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }
