"""Configurations: the schema's defaults, YAML groups, command-line overrides.

A configuration is made of the defaults of `imf_ray.schema`, the chosen YAML groups (`agent=NAME`,
`task=NAME`, `cluster=NAME` in `imf_ray/conf/`), the options of a recipe (`recipe=NAME`) and
`key=value` overrides, in that order. Unknown keys, wrong types and impossible combinations raise
`UserError` here, before anything is started.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imf_ray.errors import UserError
from imf_ray.schema import Config

CONF_DIR = Path(__file__).parent / "conf"
RECIPE = "recipe"
WORKER_RANGE = re.compile(r"(\d+)\.\.(\d+)")
"""`cluster.num_workers=2..8` stands for its two ends."""
GROUPS = {"agent": "resnet_imf_attnres", "task": "sim_transfer", "cluster": "local"}


def load_config(overrides: Iterable[str] = ()) -> Config:
    """Compose the configuration from defaults, groups and `key=value` overrides.

    Later overrides win. A bare group name (`agent=NAME`) selects that group's YAML file wherever
    it stands among the overrides; `task=mine.yaml` is a file of one's own. `recipe=NAME` stands for
    the options that its file lists, which all others win over.

    Raises:
        UserError: an override that is not `key=value`, an unknown key or group (the nearest known
            one is named), a value of the wrong type, an impossible combination.
    """
    choices = dict(GROUPS)
    values: list[tuple[str, str]] = []
    for apply_overrides in _expand_recipe(list(overrides)):
        key, separator, value = apply_overrides.partition("=")
        if not separator or not key:
            raise UserError(f"{apply_overrides!r} is not an option: write key=value (see --help).")
        if key in GROUPS:
            choices[key] = value
        elif key == "cluster.num_workers" and (ends := WORKER_RANGE.fullmatch(value)):
            values += [("cluster.min_workers", ends[1]), (key, ends[2])]
        else:
            values.append((key, value))

    config = OmegaConf.structured(Config)
    try:
        for group, choice in choices.items():
            config.merge_with({group: OmegaConf.load(_group_file(group, choice))})
        for key, value in values:
            _require_known(key)
            config.merge_with(OmegaConf.from_dotlist([f"{key}={value}"]))
        return _to_object(config)
    except OmegaConfBaseException as error:
        key = error.full_key or "the configuration"
        reason = str(error.msg if hasattr(error, "msg") else error).splitlines()[0]
        raise UserError(f"{key}: {reason}.") from error


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Rebuild a configuration from `config_to_dict`'s output or a checkpoint's config file.

    Raises:
        UserError: keys or types that this version does not know.
    """
    try:
        return _to_object(OmegaConf.merge(OmegaConf.structured(Config), dict(values)))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"This configuration does not fit this version: {reason}") from error


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """A configuration with `key=value` overrides over it.

    Raises:
        UserError: as `load_config`.
    """
    merged = OmegaConf.merge(OmegaConf.structured(Config), config_to_dict(config))
    for item in overrides:
        key = item.partition("=")[0]
        _require_known(key)
        merged.merge_with(OmegaConf.from_dotlist([item]))
    return _to_object(merged)


def dedupe_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides without those that a later one of the same key replaces."""
    return list({item.partition("=")[0]: item for item in overrides}.values())


def config_to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, every interpolation resolved."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def known_keys() -> list[str]:
    """Every dotted key of the schema, in order."""
    return list(_leaf_keys(Config, ""))


def key_help() -> list[tuple[str, str]]:
    """Pairs of dotted key and default, for `--help`."""
    defaults = OmegaConf.structured(Config)
    for group, choice in GROUPS.items():
        defaults.merge_with({group: OmegaConf.load(_group_file(group, choice))})
    defaults.merge_with({"task": {"adapter": {}}})  # absent by default
    plain = OmegaConf.to_container(defaults, resolve=True)
    return [(key, str(_get_nested(cast(dict[str, Any], plain), key))) for key in known_keys()]


def to_override(key: str, value: Any) -> str:
    """`key=value` as a person would type it; JSON is YAML, which is how values are read."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def group_choices(group: str) -> list[str]:
    """The names that `group=NAME`, or `recipe=NAME`, accepts."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _to_object(config: Any) -> Config:
    return cast(Config, OmegaConf.to_object(config))


def _expand_recipe(overrides: list[str]) -> list[str]:
    """The overrides with the options of their recipe, if they name one, in front."""
    names = [o.partition("=")[2] for o in overrides if o.startswith(f"{RECIPE}=")]
    if not names:
        return overrides
    if len(names) > 1:
        raise UserError(f"Two recipes are given, {' and '.join(names)}: choose one.")
    options = OmegaConf.to_container(OmegaConf.load(_group_file(RECIPE, names[0])))
    if not isinstance(options, dict):
        raise UserError(f"recipe={names[0]} is not a list of options, `key: value`.")
    rest = [o for o in overrides if not o.startswith(f"{RECIPE}=")]
    return [*(to_override(str(key), value) for key, value in options.items()), *rest]


def _group_file(group: str, choice: str) -> Path:
    if choice.endswith((".yaml", ".yml")):
        path = Path(choice).expanduser().absolute()
        if not path.is_file():
            raise UserError(f"{group}={choice}: there is no file {path}.")
        return path
    path = CONF_DIR / group / f"{choice}.yaml"
    if not path.is_file():
        known = group_choices(group)
        raise UserError(
            f"{group}={choice} is unknown{_suggest(choice, known)}. Known: {', '.join(known)}, or "
            "a YAML file's path."
        )
    return path


def _require_known(key: str) -> None:
    known = known_keys()
    if key not in known:
        sections = sorted({k.split(".", 1)[0] for k in known})
        if key in sections:
            raise UserError(f"{key} is a section: set one of its keys, e.g. {key}.{'…'}")
        raise UserError(f"Unknown option {key}{_suggest(key, known)}. --help lists all options.")


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; did you mean {close[0]}?" if close else ""


def _leaf_keys(cls: type, prefix: str) -> Iterable[str]:
    for name, hint in get_type_hints(cls).items():
        sections = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
        if sections:
            yield from _leaf_keys(cast(type, sections[0]), f"{prefix}{name}.")
        else:
            yield prefix + name


def _get_nested(tree: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree
