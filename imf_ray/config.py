"""Configurations: the schema's defaults, YAML groups, recipes, files and command-line overrides.

A configuration is composed of the defaults of `imf_ray.schema`, the chosen YAML groups
(`agent=NAME`, `task=NAME`, `cluster=NAME` in `imf_ray/conf/`), the options of a recipe
(`recipe=NAME`) and `key=value` overrides, in this order. `config=FILE.yaml` takes a saved
configuration in place of the groups. Unknown keys, wrong types and impossible combinations raise
`UserError` before anything starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from imf_ray.aliases import rename_options, rename_overrides
from imf_ray.errors import UserError
from imf_ray.schema import Config, all_options

CONF_DIR = Path(__file__).parent / "conf"
RECIPE, CONFIG = "recipe", "config"
GROUPS = {"agent": "resnet_imf_attnres", "task": "sim_transfer", "cluster": "local"}
"""Sections whose values may come from a YAML file, and the file taken by default."""
WORKER_RANGE = re.compile(r"(\d+)\.\.(\d+)")
"""`cluster.num_workers=2..8` sets the least and the largest number of workers."""
RUN_OPTIONS = ("run_name", "resume", "checkpoint", "search_space")
"""Options of a saved configuration that name its own run or sweep; `config=FILE` ignores them."""
FOLLOWING_CAMERAS = (
    ("agent.vision_backbone.camera_names", "agent.camera_names"),
    ("agent.camera_names", "data.camera_names"),
)
"""Camera options and the options whose value they take by default."""


def load_config(overrides: Iterable[str] = ()) -> Config:
    """Compose the configuration from defaults, groups and `key=value` overrides.

    Later overrides win. `agent=NAME` selects that group's YAML file wherever it stands among the
    overrides; `task=mine.yaml` selects any file. `recipe=NAME` stands for the options in its file,
    `config=FILE.yaml` for a saved configuration; all other overrides win over both. Old names of
    options are accepted, with a notice.

    Raises:
        UserError: an override is not `key=value`; a key or group is unknown (the message names the
            nearest known one); a value has the wrong type; a combination is impossible.
    """
    base_file, items = _split_config_file(rename_overrides(overrides, announce_rename))
    groups, values = _split_groups(_expand_recipe(items, base_file))
    config = OmegaConf.structured(Config)
    if base_file is not None:
        base = _read_base(base_file)
        _merge(config, {k: v for k, v in base.items() if k not in groups}, base_file)
        groups = {group: name for group, name in GROUPS.items() if group not in base} | groups
    else:
        groups = GROUPS | groups
    for group, choice in groups.items():
        section = rename_options({group: _read_group(group, choice)}, announce_rename)
        _merge(config, section, f"{group}={choice}")
    _merge_overrides(config, values)
    try:
        return _to_object(config)
    except UserError as error:
        if base_file is None:
            raise
        raise UserError(f"{error} The base is {CONFIG}={base_file}.") from error


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Rebuild a configuration from `config_to_dict`'s output or a checkpoint's config file.

    Configurations of earlier versions are translated; options that they lack get their defaults.

    Raises:
        UserError: keys or types that this version does not know.
    """
    config = OmegaConf.structured(Config)
    _merge(config, rename_options(values), "This configuration does not fit this version")
    return _to_object(config)


def config_to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, with every interpolation resolved."""
    return dataclasses.asdict(config)


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """A copy of a configuration with `key=value` overrides applied.

    Raises:
        UserError: as `load_config`.
    """
    merged = OmegaConf.structured(config)
    _merge_overrides(merged, rename_overrides(overrides, announce_rename))
    return _to_object(merged)


def dedupe_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides under current names, only the last one of each key."""
    current = [item for override in overrides for item in rename_overrides([override])]
    return list({item.partition("=")[0]: item for item in current}.values())


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def to_override(key: str, value: Any) -> str:
    """The option as `key=value` on a command line; values are JSON, which is also YAML."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def default_overrides() -> dict[str, str]:
    """For each option, `key=value` with its default, for `--help`."""
    config = OmegaConf.structured(Config)
    for group, choice in GROUPS.items():
        config.merge_with({group: _read_group(group, choice)})
    config.merge_with({"task": {"adapter": {}}})  # None by default; its options have defaults
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return {key: to_override(key, _get_nested(plain, key)) for key in all_options()}


def group_choices(group: str) -> list[str]:
    """The names that `group=NAME`, or `recipe=NAME`, accepts."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


@cache  # one notice for each name
def announce_rename(old: str, new: str) -> None:
    """Tell the user on stderr that an option or a value has a new name."""
    print(f"{old} is now called {new}.", file=sys.stderr)


def _split_config_file(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file of `config=FILE`, or None, and the other overrides."""
    files = [item.partition("=")[2] for item in overrides if item.startswith(f"{CONFIG}=")]
    if len(files) > 1:
        raise UserError(f"Two configurations are given, {' and '.join(files)}: choose one.")
    return files[0] if files else None, [i for i in overrides if not i.startswith(f"{CONFIG}=")]


def _expand_recipe(overrides: list[str], base_file: str | None) -> list[str]:
    """The overrides with the options of their recipe, if they name one, in front."""
    names = [item.partition("=")[2] for item in overrides if item.startswith(f"{RECIPE}=")]
    if not names:
        return overrides
    if len(names) > 1:
        raise UserError(f"Two recipes are given, {' and '.join(names)}: choose one.")
    if base_file is not None:
        raise UserError(
            f"{CONFIG}={base_file} and {RECIPE}={names[0]} both set the options of a run: choose "
            "one of them."
        )
    options = rename_options(_read_group(RECIPE, names[0]), announce_rename)
    others = [item for item in overrides if not item.startswith(f"{RECIPE}=")]
    return [*(to_override(key, value) for key, value in options.items()), *others]


def _split_groups(overrides: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The chosen groups and the other overrides, with worker ranges written as two options."""
    groups: dict[str, str] = {}
    values: list[str] = []
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise UserError(f"{item!r} is not an option: write key=value (see --help).")
        if key in GROUPS:
            groups[key] = value
        elif key == "cluster.num_workers" and (ends := WORKER_RANGE.fullmatch(value)):
            values += [f"cluster.min_workers={ends[1]}", f"{key}={ends[2]}"]
        else:
            values.append(item)
    return groups, values


def _read_base(file: str) -> dict[str, Any]:
    """The sections of a saved configuration, without the options that name its run.

    Cameras that equal the ones they follow by default keep following them.
    """
    path = Path(file).expanduser().absolute()
    base = rename_options(_read_mapping(path, f"{CONFIG}={file}"))
    for key in RUN_OPTIONS:
        base.pop(key, None)
    for key, source in FOLLOWING_CAMERAS:
        section, name = key.rsplit(".", 1)
        with_cameras = _get_nested(base, section)
        if with_cameras and with_cameras.get(name) == _get_nested(base, source):
            with_cameras.pop(name, None)
    return base


def _read_group(group: str, choice: str) -> dict[str, Any]:
    if choice.endswith((".yaml", ".yml")):
        path = Path(choice).expanduser().absolute()
    else:
        path = CONF_DIR / group / f"{choice}.yaml"
        if not path.is_file():
            names = group_choices(group)
            raise UserError(
                f"{group}={choice} is unknown{suggest(choice, names)} Known: {', '.join(names)}, "
                "or a YAML file's path."
            )
    return _read_mapping(path, f"{group}={choice}")


def _read_mapping(path: Path, option: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{option}: there is no file {path}.")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{option}: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{option}: {path} is not a list of options, `key: value`.")
    return {str(key): value for key, value in content.items()}


def _merge_overrides(config: Any, overrides: Iterable[str]) -> None:
    for item in overrides:
        key = item.partition("=")[0]
        _check_key(key)
        try:
            values = OmegaConf.from_dotlist([item])
        except YAMLError as error:
            raise UserError(f"{item} is not valid YAML after the equals sign.") from error
        _merge(config, values)


def _merge(config: Any, values: Any, source: str | None = None) -> None:
    """Merge values into a structured configuration; errors name the source and the key."""
    try:
        config.merge_with(values)
    except OmegaConfBaseException as error:
        key = error.full_key or "the configuration"
        reason = str(error.msg or error).splitlines()[0]
        raise UserError(f"{f'{source}: ' if source else ''}{key}: {reason}.") from error


def _to_object(config: Any) -> Config:
    try:
        return cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}.") from error


def _check_key(key: str) -> None:
    options = all_options()
    if key in options:
        return
    inside = [option for option in options if option.startswith(f"{key}.")]
    if inside:
        raise UserError(f"{key} is a section: set one of its options, such as {inside[0]}.")
    raise UserError(
        f"Unknown option {key}{suggest(key, list(options))} --help-all lists all options."
    )


def suggest(word: str, names: Sequence[str]) -> str:
    """The end of a sentence about an unknown word: the question for the nearest of the names."""
    return f": did you mean {difflib.get_close_matches(word, names, n=1, cutoff=0.0)[0]}?"


def _get_nested(tree: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None if a section is missing."""
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
