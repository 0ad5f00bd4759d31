"""The configuration that a run or checkpoint has stored, as a page shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_ray.aliases import rename_options
from imf_ray.checkpoint_dir import CONFIG_FILE
from imf_ray.config import config_from_dict
from imf_ray.errors import UserError
from imf_ray.folders import DATA_MANIFEST_FILE
from imf_ray.pages.commands import flat_options
from imf_ray.pages.file_cache import FileCache
from imf_ray.pages.model import DataSummary, Row
from imf_ray.redaction import redact, redact_options
from imf_ray.schema import Config
from imf_ray.sim.tasks import TASKS
from imf_ray.training.run_records import VAL_EPISODES_KEY
from imf_ray.yaml_text import parse_file, plain

HIDDEN_OPTIONS = ("run_name", "resume", "checkpoint", "search_space", "storage_path")
"""Options that name a run or its folder, and so are not compared."""
Counts = tuple[int, int, int]


@dataclass(frozen=True)
class StoredConfig:
    """The content of a `config.yaml`, which may be of another version."""

    options: Mapping[str, Any]
    """Options by their dotted names, of which some may be missing or unknown."""
    config: Config | None
    """The whole configuration; None if it does not fit this version."""
    problem: str | None = None
    """Why there is no `config`."""

    @property
    def max_steps(self) -> int | None:
        """Number of updates of the run; None if it is unknown."""
        value = self.options.get("train.max_steps")
        return value if isinstance(value, int) else None

    def shown_options(self) -> dict[str, Any]:
        """Return the options for a page, without secrets."""
        shown = {key: self.options[key] for key in self.options if key not in HIDDEN_OPTIONS}
        return redact_options(shown)

    def stage_names(self, rows: Iterable[Row]) -> list[str]:
        """Return each stage of the task in words, see `stage_names`."""
        return stage_names(
            str(self.options.get("task.env_id")),
            str(self.options.get("task.adapter.progress_signal", "")),
            self.options.get("task.adapter.stage_thresholds") or (),
            rows,
        )


def read_config(folder: Path, cache: FileCache) -> StoredConfig | None:
    """Return the configuration of a run or checkpoint; None if it is missing or damaged."""
    return cache.read(folder / CONFIG_FILE, _parse_config)


def config_problem(folder: Path, cache: FileCache) -> str | None:
    """Return why the configuration that was read last is not whole; None if it is."""
    stored = read_config(folder, cache)
    return cache.problem(folder / CONFIG_FILE) if stored is None else stored.problem


def differing_options(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the options that do not have the same value in all rows."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    missing = object()
    return [
        name for name in names if any(row.get(name, missing) != rows[0].get(name) for row in rows)
    ]


def stage_names(
    env_id: str, signal: str, thresholds: Iterable[float], rows: Iterable[Row]
) -> list[str]:
    """Return each stage of a task in words.

    Args:
        env_id: environment id of the task; a registered task names its stages.
        signal, thresholds: signal of the task's adapter, and its value that each stage reaches.
        rows: the results. If they have another number of stages, these are only numbered.
    """
    names = [f"{signal} reaches {threshold:g}" for threshold in thresholds]
    if env_id in TASKS and TASKS[env_id].stages:
        names = list(TASKS[env_id].stages)
    num_stages = max((len(row.stages) for row in rows), default=0)
    if num_stages in (0, len(names)):
        return names
    return [f"stage {number}" for number in range(1, num_stages + 1)]


def data_summary(folder: Path, stored: StoredConfig, cache: FileCache) -> DataSummary | None:
    """Return the data set of a run; None if its `data.json` is missing or damaged."""
    path = folder / DATA_MANIFEST_FILE
    counts = cache.read_json(path, _counts, "The data set is not shown.")
    if counts is None:
        return None
    num_train, num_val, num_steps = counts
    options = stored.options
    return DataSummary(
        path=redact(str(options.get("data.dataset_dir", "unknown"))),
        format=str(options.get("data.format", "unknown")),
        num_train=num_train,
        num_val=num_val,
        num_steps=num_steps,
        cameras=list(options.get("agent.camera_names") or ()),
    )


def _parse_config(content: bytes) -> StoredConfig:
    tree = parse_file(content, CONFIG_FILE)
    try:
        config = config_from_dict(tree)
    except UserError as error:
        options = dict(flatten(rename_options(plain(tree))))
        return StoredConfig(options, None, redact(f"{CONFIG_FILE}: {error}"))
    return StoredConfig(flat_options(config), config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by their dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _counts(manifest: Any) -> Counts:
    episodes = manifest["episodes"]
    num_steps = sum(int(episode[1]) for episode in episodes)
    return len(episodes), len(manifest.get(VAL_EPISODES_KEY, ())), num_steps
