"""Composes the configuration of a command.

The parts are applied in this order, and later ones override earlier ones:

1. the defaults of `imf_ray.schema`
2. YAML groups in `imf_ray/conf/` (`agent=NAME`, `task=NAME`, `cluster=NAME`), or a saved
   configuration (`config=FILE.yaml`) in place of them
3. a recipe (`recipe=NAME`): a YAML file with options for a whole run
4. `key=value` overrides of the command line

Unknown keys, wrong types and impossible combinations raise `UserError` before anything starts.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from imf_ray.aliases import Notify, rename_options, rename_overrides
from imf_ray.checkpoint_dir import CONFIG_FILE
from imf_ray.errors import UserError, error_source
from imf_ray.schema import Config, all_options, section_names
from imf_ray.schema.values import build, convert, parse_text
from imf_ray.storage import expand_variables, folder_name_problem, parse_path
from imf_ray.suggestions import suggest
from imf_ray.yaml_text import Scalar, dump_value, dump_yaml, plain, read_yaml

CONF_DIR = Path(__file__).parent / "conf"
RECIPE, CONFIG = "recipe", "config"
YAML_SUFFIXES = (".yaml", ".yml")
GROUPS = {"agent": "resnet_imf_attnres", "task": "sim_transfer", "cluster": "local"}
"""Sections whose values may come from a YAML group file, and the default file of each."""
WORKERS, WORKER_RANGE = "cluster.num_workers", re.compile(r"([0-9]+)\.\.([0-9]+)")
"""Option of the form `cluster.num_workers=2..8`: the minimum and the maximum number of workers."""
RUN_OPTIONS = ("run_name", "resume", "checkpoint", "search_space")
"""Options that identify one run or sweep. `config=FILE` does not take them from the file."""
CAMERA_DEFAULTS = {
    "agent.camera_names": "data.camera_names",
    "agent.vision_backbone.camera_names": "agent.camera_names",
}
"""Camera options, each with the option whose value it takes by default."""


def load_config(
    overrides: Iterable[str] = (),
    sources: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Compose the configuration from defaults, groups and `key=value` overrides.

    The order of groups, recipe and saved configuration among the overrides does not matter. Of two
    overrides of the same key, the later one is used. A group may be any YAML file, as in
    `task=mine.yaml`. Old names of options are accepted, with a notice on stderr. Environment
    variables in paths are replaced.

    Args:
        sources: for each key among the overrides that does not come from the command line, where it
            comes from, for error messages.
        defaults: values of options that neither the overrides nor their files give.

    Raises:
        UserError: an override is not `key=value`; a key or group is unknown (the message suggests
            the most similar one); a value has the wrong type; a combination is impossible.
    """
    base_file, items = _split_config_file(rename_overrides(overrides, announce_rename))
    recipe, from_recipe, others = _expand_recipe(items, base_file)
    choices, values = _split_choices([*from_recipe, *others])
    all_sources = {
        **dict.fromkeys(map(_key, from_recipe), recipe),
        **{_key(item): (sources or {}).get(_key(item), "") for item in others},
        **{group: f"{group}={choice}" for group, choice in choices.items()},
    }
    options = {} if base_file is None else _read_base(base_file)
    for group, default in GROUPS.items():
        is_in_base = any(key.startswith(f"{group}.") for key in options)
        if group in choices or not is_in_base:
            options = {k: v for k, v in options.items() if not k.startswith(f"{group}.")}
            _merge(options, _read_group(group, choices.get(group, default)))
    for item in values:
        _merge(options, _parse_override(item))
    try:
        _resolve_paths(options)
        return _build({**(defaults or {}), **options})
    except UserError as error:
        found = _find_sources(str(error), all_sources)
        hints = [f"This comes from {' and '.join(found)}."] if found else []
        if base_file is not None:
            hints.append(f"Other options come from {CONFIG}={base_file}.")
        raise UserError(" ".join([str(error), *hints])) from error


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Rebuild a configuration from `config_to_dict`'s output or a checkpoint's config file.

    Configurations of earlier versions are translated. Options that are missing get their defaults.

    Raises:
        UserError: a key or a type is unknown to this version.
    """
    with error_source("This configuration does not fit this version"):
        options = typed_options(values)
    return _build(options)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries."""
    return dataclasses.asdict(config)


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return a copy of a configuration with `key=value` overrides applied.

    Raises:
        UserError: an override is invalid; see `load_config`.
    """
    options = typed_options(config_to_dict(config))
    for item in rename_overrides(overrides, announce_rename):
        _merge(options, _parse_override(item))
    return _build(options)


def dedupe_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides under their current names, and only the last one of each key."""
    current = [item for override in overrides for item in rename_overrides([override])]
    return list({item.partition("=")[0]: item for item in current}.values())


def to_yaml(config: Config) -> str:
    """Return the configuration as YAML."""
    return dump_yaml(config_to_dict(config))


def to_override(key: str, value: Any) -> str:
    """Return `key=value` for a command line, from which `load_config` reads the same value.

    Text is written literally, and any other value as YAML on one line.
    """
    return f"{key}={dump_value(value)}"


def shell_override(key: str, value: Any) -> str:
    """Return `key=value` as it is typed in a shell, for messages."""
    return shlex.quote(to_override(key, value))


def default_overrides() -> dict[str, str]:
    """Map the key of each option to its `key=default`, for `--help`."""
    options = {key: rules.default for key, rules in all_options().items()}
    for group, choice in GROUPS.items():
        _merge(options, _read_group(group, choice))
    return {key: to_override(key, value) for key, value in options.items()}


def typed_options(
    tree: Mapping[str, Any], choices: Collection[str] = (), notify: Notify | None = None
) -> dict[str, Any]:
    """Return options by their dotted names, with the types that the schema declares.

    Args:
        tree: options as nested sections, under dotted names, or both. The values are those of
            `read_yaml`, or have their types already. Old names are translated.
        choices: names under which `tree` may choose a file, as in `agent: resnet_imf_attnres`.
        notify: called for each old name or value.

    Raises:
        UserError: an option is unknown, is given twice, or has a value of another type.
    """
    return _flatten(rename_options(tree, notify), choices)


def new_run_name(key: str, name: str) -> str:
    """Return the name of a run without `run_name`: another name, and the time.

    Args:
        key: the option that sets `name`, for the error message.

    Raises:
        UserError: `name` cannot be the name of a folder.
    """
    if problem := folder_name_problem(name):
        raise UserError(f"{key}={name!r} cannot name the run: {problem}. Set run_name=NAME.")
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def find_yaml(option: str, choice: str, shipped_dir: Path) -> Path:
    """Return the path of the YAML file that `option=choice` names.

    Args:
        choice: the path of a YAML file, or the name of one in `shipped_dir`.

    Raises:
        UserError: there is no such name.
    """
    names = yaml_names(shipped_dir)
    if choice.lower().endswith(YAML_SUFFIXES):
        path = _local_path(choice, f"{option}={choice}")
        name = path.stem.lower()
        if name in names and not path.exists():
            raise UserError(
                f"{option}={choice}: there is no file {path}. For the one that is part of imf_ray, "
                f"use {option}={name}"
            )
        return path
    if choice not in names:
        files = [f"{choice}{suffix}" for suffix in YAML_SUFFIXES]
        own = [file for file in files if choice and os.path.isfile(os.path.expanduser(file))]
        if own:
            raise UserError(
                f"{option}={choice} is no part of imf_ray. For your own file, use "
                f"{shell_override(option, own[0])}"
            )
        raise UserError(
            f"{option}={choice} is unknown{suggest(choice, names, GROUPS.get(option))} Use "
            f"{', '.join(names)} or the "
            "path of a YAML file."
        )
    return shipped_dir / f"{choice}.yaml"


def yaml_names(folder: Path) -> list[str]:
    """Return the sorted names of the YAML files in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def group_choices(group: str) -> list[str]:
    """Return the names that `group=NAME` or `recipe=NAME` accepts."""
    return yaml_names(CONF_DIR / group)


@cache  # print one notice per name
def announce_rename(old: str, new: str) -> None:
    """Print on stderr that an option or a value has a new name."""
    print(f"{old} is now called {new}.", file=sys.stderr)


def check_option(key: str, item: str) -> None:
    """Raise a `UserError` if `key` is no option; `item` is the `key=value` that sets it."""
    options = all_options()
    if key in options:
        return
    section_options = [option for option in options if option.startswith(f"{key}.")]
    if section_options:
        raise UserError(
            f"{item}: {key} is a section. Set one of its options instead, such as "
            f"{section_options[0]}."
        )
    raise UserError(
        f"Unknown option {item}{suggest(key, list(options))} --help-all lists all options."
    )


def _split_config_file(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the file of `config=FILE` (None if it is not given) and the other overrides."""
    files = [item.partition("=")[2] for item in overrides if item.startswith(f"{CONFIG}=")]
    if len(files) > 1:
        raise UserError(f"Two configurations are given: {' and '.join(files)}. Choose one.")
    return files[0] if files else None, [i for i in overrides if not i.startswith(f"{CONFIG}=")]


def _expand_recipe(overrides: list[str], base_file: str | None) -> tuple[str, list[str], list[str]]:
    """Return `recipe=NAME`, the recipe's options as overrides, and the other overrides.

    Without a recipe, the first two are empty.
    """
    names = [item.partition("=")[2] for item in overrides if item.startswith(f"{RECIPE}=")]
    if not names:
        return "", [], overrides
    if len(names) > 1:
        raise UserError(f"Two recipes are given: {' and '.join(names)}. Choose one.")
    if base_file is not None:
        raise UserError(
            f"{CONFIG}={base_file} and {RECIPE}={names[0]} both set the options of a run. Choose "
            "one of them."
        )
    recipe = f"{RECIPE}={names[0]}"
    options = _read_options(find_yaml(RECIPE, names[0], CONF_DIR / RECIPE), recipe, choices=GROUPS)
    others = [item for item in overrides if not item.startswith(f"{RECIPE}=")]
    return recipe, [to_override(key, value) for key, value in options.items()], others


def _key(override: str) -> str:
    return override.partition("=")[0]


def _find_sources(message: str, sources: Mapping[str, str]) -> list[str]:
    """Return where the options that an error message names come from.

    Args:
        sources: the source of each option and of each group; empty for the command line.
    """
    found = [
        sources.get(key, sources.get(key.partition(".")[0], ""))
        for key in all_options()
        if re.search(rf"(?<![\w.]){re.escape(key)}(?!\w|\.\w)", message)
    ]
    return [source for source in dict.fromkeys(found) if source]


def _split_choices(overrides: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Split overrides into the chosen groups and the options."""
    choices: dict[str, str] = {}
    values: list[str] = []
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise UserError(
                f"{item!r} is not an option. Options have the form key=value, without spaces "
                "around = (--help). Quote a value that contains spaces."
            )
        if key in GROUPS:
            choices[key] = value
        else:
            values.append(item)
    return choices, values


def _read_base(file: str) -> dict[str, Any]:
    """Read the options of a saved configuration, without `RUN_OPTIONS`.

    A camera option that equals its source (`CAMERA_DEFAULTS`) is left out, so that an override of
    the source changes both.
    """
    source = f"{CONFIG}={file}"
    path = _local_path(file, source)
    saved = path / CONFIG_FILE
    if os.path.isfile(saved):
        raise UserError(f"{source} is a folder. Use {shell_override(CONFIG, str(saved))}.")
    base = _read_options(path, source, notify=None)
    for key in RUN_OPTIONS:
        base.pop(key, None)
    for key, camera_source in reversed(CAMERA_DEFAULTS.items()):
        if key in base and base[key] == base.get(camera_source):
            del base[key]
    return base


def _read_group(group: str, choice: str) -> dict[str, Any]:
    """Read the options of the YAML file of `group=choice`."""
    path = find_yaml(group, choice, CONF_DIR / group)
    return _read_options(path, f"{group}={choice}", section=group)


def _read_options(
    path: Path,
    source: str,
    section: str | None = None,
    choices: Collection[str] = (),
    notify: Notify | None = announce_rename,
) -> dict[str, Any]:
    """Read the options of a YAML file; `section` is the section that the file describes."""
    tree = read_yaml(path, source)
    with error_source(source):
        return typed_options({section: tree} if section else tree, choices, notify)


def _local_path(file: str, source: str) -> Path:
    """Return the absolute path of a file that an option names."""
    path = parse_path(expand_variables(file, source))
    if not isinstance(path, Path):
        raise UserError(f"{source} is a URL. Copy the file to this machine.")
    return path


def _flatten(tree: Mapping[str, Any], choices: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Return the options of a section by their dotted names; see `typed_options`."""
    options: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        is_section = key in section_names()
        if is_section and plain(value) is None:  # a heading without options
            continue
        if key in choices and isinstance(value, (str, Scalar)):
            new = {key: dump_value(value)}
        elif is_section and isinstance(value, Mapping):
            new = _flatten(value, choices, f"{key}.")
        else:
            if key not in all_options():
                check_option(key, to_override(key, value))
            new = _typed(key, value)
        if twice := options.keys() & new.keys():
            raise UserError(f"{min(twice)} is given twice. Remove one of the values.")
        options |= new
    return options


def _parse_override(item: str) -> dict[str, Any]:
    """Return the options that a `key=value` of the command line sets."""
    key, _, text = item.partition("=")
    check_option(key, item)
    return _typed(key, parse_text(key, all_options()[key].kind, text))


def _typed(key: str, value: Any) -> dict[str, Any]:
    """Return an option with its type. `WORKERS` with a range is replaced by two options."""
    if key == WORKERS and (match := WORKER_RANGE.fullmatch(dump_value(value))):
        return {"cluster.min_workers": int(match[1]), WORKERS: int(match[2])}
    return {key: convert(key, all_options()[key].kind, value)}


def _merge(options: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Set options. The entries of a dictionary are added to those that it already has."""
    for key, value in new.items():
        if isinstance(value, Mapping):
            entries = options.get(key)
            options[key] = dict(entries) if isinstance(entries, Mapping) else {}
            _merge(options[key], value)
        else:
            options[key] = value


def _resolve_paths(options: dict[str, Any]) -> None:
    """Replace the variables in paths, and check the names of folders."""
    for key, rules in all_options().items():
        value = options.get(key)
        if value is not None and rules.is_path:
            options[key] = expand_variables(value, f"{key}={value}")
        if value and rules.is_folder_name and (problem := folder_name_problem(value)):
            raise UserError(f"{key}={value!r} cannot be the name of a folder: {problem}.")


def _build(options: Mapping[str, Any]) -> Config:
    """Make the `Config`, which checks all values."""
    defaults = {key: rules.default for key, rules in all_options().items()}
    options = dict(options)
    for key, source in CAMERA_DEFAULTS.items():
        value = options.get(source, defaults[source])
        all_options()[source].check(source, value)  # an error names the option that was set
        options.setdefault(key, list(value))
    return build(Config, options)
