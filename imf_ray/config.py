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
"""Sections whose values may come from a YAML group file, and the default file of each."""
WORKER_RANGE = re.compile(r"(\d+)\.\.(\d+)")
"""Form of `cluster.num_workers=2..8`: the minimum and the maximum number of workers."""
RUN_OPTIONS = ("run_name", "resume", "checkpoint", "search_space")
"""Options that identify one run or sweep. `config=FILE` does not take them from the file."""
CAMERA_DEFAULTS = (
    ("agent.vision_backbone.camera_names", "agent.camera_names"),
    ("agent.camera_names", "data.camera_names"),
)
"""Camera options, each with the option whose value it takes by default."""


def load_config(overrides: Iterable[str] = ()) -> Config:
    """Compose the configuration from defaults, groups and `key=value` overrides.

    The order of groups, recipe and saved configuration among the overrides does not matter. Of two
    overrides of the same key, the later one is used. A group may be any YAML file, as in
    `task=mine.yaml`. Old names of options are accepted, with a notice on stderr.

    Raises:
        UserError: an override is not `key=value`; a key or group is unknown (the message suggests
            the most similar one); a value has the wrong type; a combination is impossible.
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
        raise UserError(f"{error} Other options come from {CONFIG}={base_file}.") from error


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Rebuild a configuration from `config_to_dict`'s output or a checkpoint's config file.

    Configurations of earlier versions are translated. Options that are missing get their defaults.

    Raises:
        UserError: a key or a type is unknown to this version.
    """
    config = OmegaConf.structured(Config)
    _merge(config, rename_options(values), "This configuration does not fit this version")
    return _to_object(config)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries, with all interpolations resolved."""
    return dataclasses.asdict(config)


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return a copy of a configuration with `key=value` overrides applied.

    Raises:
        UserError: an override is invalid; see `load_config`.
    """
    merged = OmegaConf.structured(config)
    _merge_overrides(merged, rename_overrides(overrides, announce_rename))
    return _to_object(merged)


def dedupe_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides under their current names, and only the last one of each key."""
    current = [item for override in overrides for item in rename_overrides([override])]
    return list({item.partition("=")[0]: item for item in current}.values())


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def to_override(key: str, value: Any) -> str:
    """Return `key=value` for a command line. A value that is not a string is written as JSON."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def default_overrides() -> dict[str, str]:
    """Map the key of each option to its `key=default`, for `--help`."""
    config = OmegaConf.structured(Config)
    for group, choice in GROUPS.items():
        config.merge_with({group: _read_group(group, choice)})
    config.merge_with(
        {"task": {"adapter": {}}}
    )  # by default there is no adapter, and no help for it
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return {key: to_override(key, _get_nested(plain, key)) for key in all_options()}


def group_choices(group: str) -> list[str]:
    """Return the names that `group=NAME` or `recipe=NAME` accepts."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


@cache  # print one notice per name
def announce_rename(old: str, new: str) -> None:
    """Print on stderr that an option or a value has a new name."""
    print(f"{old} is now called {new}.", file=sys.stderr)


def _split_config_file(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the file of `config=FILE` (None if it is not given) and the other overrides."""
    files = [item.partition("=")[2] for item in overrides if item.startswith(f"{CONFIG}=")]
    if len(files) > 1:
        raise UserError(f"Two configurations are given: {' and '.join(files)}. Choose one.")
    return files[0] if files else None, [i for i in overrides if not i.startswith(f"{CONFIG}=")]


def _expand_recipe(overrides: list[str], base_file: str | None) -> list[str]:
    """Replace `recipe=NAME`, if given, by the recipe's options, in front of the other overrides."""
    names = [item.partition("=")[2] for item in overrides if item.startswith(f"{RECIPE}=")]
    if not names:
        return overrides
    if len(names) > 1:
        raise UserError(f"Two recipes are given: {' and '.join(names)}. Choose one.")
    if base_file is not None:
        raise UserError(
            f"{CONFIG}={base_file} and {RECIPE}={names[0]} both set the options of a run. Choose "
            "one of them."
        )
    options = rename_options(_read_group(RECIPE, names[0]), announce_rename)
    others = [item for item in overrides if not item.startswith(f"{RECIPE}=")]
    return [*(to_override(key, value) for key, value in options.items()), *others]


def _split_groups(overrides: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Split overrides into the chosen groups and the others.

    `cluster.num_workers=2..8` is replaced by two options.
    """
    groups: dict[str, str] = {}
    values: list[str] = []
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise UserError(f"{item!r} is not an option. Options have the form key=value (--help).")
        if key in GROUPS:
            groups[key] = value
        elif key == "cluster.num_workers" and (match := WORKER_RANGE.fullmatch(value)):
            values += [f"cluster.min_workers={match[1]}", f"{key}={match[2]}"]
        else:
            values.append(item)
    return groups, values


def _read_base(file: str) -> dict[str, Any]:
    """Read the sections of a saved configuration, without `RUN_OPTIONS`.

    A camera option that equals its source (`CAMERA_DEFAULTS`) is left out, so that an override of
    the source changes both.
    """
    path = Path(file).expanduser().absolute()
    base = rename_options(_read_mapping(path, f"{CONFIG}={file}"))
    for key in RUN_OPTIONS:
        base.pop(key, None)
    for key, source in CAMERA_DEFAULTS:
        section, name = key.rsplit(".", 1)
        section_values = _get_nested(base, section)
        if isinstance(section_values, dict) and section_values.get(name) == _get_nested(
            base, source
        ):
            section_values.pop(name, None)
    return base


def _read_group(group: str, choice: str) -> dict[str, Any]:
    """Read the YAML file of `group=choice`."""
    if choice.endswith((".yaml", ".yml")):
        path = Path(choice).expanduser().absolute()
    else:
        path = CONF_DIR / group / f"{choice}.yaml"
        if not path.is_file():
            names = group_choices(group)
            raise UserError(
                f"{group}={choice} is unknown{suggest(choice, names)} Use {', '.join(names)} or "
                "the path of a YAML file."
            )
    return _read_mapping(path, f"{group}={choice}")


def _read_mapping(path: Path, option: str) -> dict[str, Any]:
    """Read a YAML file whose content is a mapping; `option` is named in errors."""
    if not path.is_file():
        raise UserError(f"{option}: there is no file {path}.")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{option}: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{option}: {path} is not a mapping with lines `key: value`.")
    return {str(key): value for key, value in content.items()}


def _merge_overrides(config: Any, overrides: Iterable[str]) -> None:
    """Merge `key=value` overrides into a structured configuration, in order."""
    for item in overrides:
        key = item.partition("=")[0]
        _check_key(key)
        try:
            values = OmegaConf.from_dotlist([item])
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"The value in {item} is not valid YAML.") from error
        _merge(config, values)


def _merge(config: Any, values: Any, source: str | None = None) -> None:
    """Merge values into a structured configuration. Errors name the source and the key."""
    try:
        config.merge_with(values)
    except OmegaConfBaseException as error:
        key = error.full_key or "the configuration"
        reason = str(error.msg or error).splitlines()[0]
        raise UserError(f"{f'{source}: ' if source else ''}{key}: {reason}.") from error


def _to_object(config: Any) -> Config:
    """Make the `Config`, which checks all values, from a structured configuration."""
    try:
        return cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}.") from error


def _check_key(key: str) -> None:
    """Raise a `UserError` if there is no option of this name."""
    options = all_options()
    if key in options:
        return
    section_options = [option for option in options if option.startswith(f"{key}.")]
    if section_options:
        raise UserError(
            f"{key} is a section. Set one of its options instead, such as {section_options[0]}."
        )
    raise UserError(
        f"Unknown option {key}{suggest(key, list(options))} --help-all lists all options."
    )


def suggest(word: str, names: Sequence[str]) -> str:
    """Return ': did you mean NAME?' with the most similar name, for a message about `word`."""
    return f": did you mean {difflib.get_close_matches(word, names, n=1, cutoff=0.0)[0]}?"


def _get_nested(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None if it or one of its sections is missing."""
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
