"""The description of a command, and its help text."""

from __future__ import annotations

import importlib
import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from imf_ray.config import CONFIG, GROUPS, RECIPE, default_overrides, group_choices, load_config
from imf_ray.schema import Config, Option, all_options, command_options, section_help

COMMON_FLAGS = {
    "--print-config": "print the resolved configuration and exit",
    "--help, -h": "show this text",
    "--help-all": "show the options of all commands",
}
MIN_WIDTH, MAX_WIDTH = 60, 100
"""Minimum and maximum width of the help text in characters; it is the terminal's in between."""


@dataclass(frozen=True)
class Command:
    """A command of the package, `imf-ray NAME` or `python -m imf_ray.NAME`."""

    name: str
    run: Callable[..., str | None]
    """Called as `run(config, overrides)` or, if `passes_arguments`, `run(config, overrides,
    arguments)`. It returns the arguments of a command that often follows, quoted for a shell. Its
    docstring is the description in the help."""
    examples: Sequence[str]
    """Arguments of typical calls, for the help."""
    positional: str | None = None
    """Form of the arguments that are not options, for the help; None if there are none."""
    argument_option: str | None = None
    """Name of the option that a single positional argument sets. None passes positional arguments
    to `run`."""
    resolve: Callable[[Sequence[str]], Config] = load_config
    """Called with the overrides; returns the configuration."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Explanation of each flag of the command. Flags that are given are passed on among the
    positional arguments."""

    @property
    def passes_arguments(self) -> bool:
        """True if `run` gets positional arguments or flags."""
        return bool(self.flags or (self.positional and self.argument_option is None))

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        return self.description.partition("\n\n")[0].replace("\n", " ")

    @property
    def description(self) -> str:
        """The docstring of `run` up to its list of exceptions."""
        return inspect.cleandoc(self.run.__doc__ or "").partition("\n\nRaises:")[0]

    def usage(self, program: str) -> str:
        """Return the usage line of the command."""
        arguments = [self.positional] if self.positional else []
        flags = [f"[{flag}]" for flag in self.flags]
        return " ".join([program, *arguments, *flags, "[key=value ...]"])


def load_command(name: str) -> Command:
    """Import the entry point `imf_ray.NAME` and return its command."""
    command: Command = importlib.import_module(f"imf_ray.{name}").COMMAND
    return command


def help_text(command: Command, program: str, every_option: bool = False) -> str:
    """Return the help text of a command.

    Args:
        program: the words that call the command, such as `imf-ray train`.
        every_option: list the options of all commands, not only the command's own.
    """
    width = max(MIN_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns))
    options = all_options() if every_option else command_options(command.name)
    flags = {**command.flags, **COMMON_FLAGS}
    parts = [
        f"usage: {command.usage(program)}",
        "\n\n".join(_fill(part, width) for part in command.description.split("\n\n")),
        "Examples:\n" + "\n".join(f"  {program} {example}" for example in command.examples),
        _groups_text(command.name, options, width),
        *_option_texts(command.name, options, width),
        "\n".join(["Flags:", *(f"  {flag:<14}  {text}" for flag, text in flags.items())]),
    ]
    return "\n\n".join(part for part in parts if part)


def _groups_text(command: str, options: Mapping[str, Option], width: int) -> str:
    """Return the section about YAML groups, recipes and configuration files.

    The text is empty if the command accepts none of them.
    """
    rows = [
        (f"{group}=NAME", f"{', '.join(group_choices(group))}. Default: {default}.")
        for group, default in GROUPS.items()
        if any(key.startswith(f"{group}.") for key in options)
    ]
    if command in ("train", "tune", "collect"):
        recipes = f"{', '.join(group_choices(RECIPE))}. Options for a whole run."
        rows += [
            (f"{RECIPE}=NAME", recipes),
            (f"{CONFIG}=FILE", "A saved configuration, such as runs/NAME/config.yaml."),
        ]
    if not rows:
        return ""
    lines = [
        "Groups of options (NAME may be the path of a YAML file; single options override them):"
    ]
    for name, choices in rows:
        indent = f"  {name:<13}"
        lines.append(
            textwrap.fill(choices, width, initial_indent=indent, subsequent_indent=" " * 15)
        )
    return "\n".join(lines)


def _option_texts(command: str, options: Mapping[str, Option], width: int) -> list[str]:
    """Return one text per section of options.

    The options without a section come first, then the command's own section, then the others.
    """
    defaults = default_overrides()
    sections: dict[str, list[str]] = {"": [], command: []}
    for key, rules in options.items():
        section = key.rpartition(".")[0]
        text = _fill(_explanation(rules), width, " " * 6, " " * 6)
        sections.setdefault(section, []).append(f"  {defaults[key]}\n{text}")
    return [
        "\n".join([f"{name}: {section_help(name)}" if name else "Options and defaults:", *texts])
        for name, texts in sections.items()
        if texts
    ]


def _explanation(rules: Option) -> str:
    """Return the help of an option, with its choices if the help does not contain all of them."""
    choices = rules.choice_names()
    if all(choice in rules.help for choice in choices):
        return rules.help
    return f"{rules.help} One of {', '.join(choices)}."


def _fill(paragraph: str, width: int, first_indent: str = "", indent: str = "") -> str:
    """Wrap a paragraph at spaces into lines of at most the given width."""
    return textwrap.fill(
        " ".join(paragraph.split()),
        width,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
