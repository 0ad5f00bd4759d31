"""The configuration that a run or checkpoint has stored, as a page shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imf_ray.checkpoint_dir import CONFIG_FILE
from imf_ray.config import config_from_dict
from imf_ray.folders import DATA_MANIFEST_FILE
from imf_ray.pages.commands import flat_options
from imf_ray.pages.file_cache import FileCache
from imf_ray.pages.model import DataSummary, Row
from imf_ray.redaction import redact, redact_options
from imf_ray.schema import Config
from imf_ray.schema.task import TaskConfig
from imf_ray.sim.tasks import TASKS
from imf_ray.training.run_records import VAL_EPISODES_KEY
from imf_ray.yaml_text import parse_file

HIDDEN_OPTIONS = ("run_name", "resume", "checkpoint", "search_space", "storage_path")
"""Options that name a run or its folder, and so are not compared."""
Counts = tuple[int, int, int]


def read_config(folder: Path, cache: FileCache) -> Config | None:
    """Return the configuration of a run or checkpoint; None if it is missing or damaged."""
    return cache.read(folder / CONFIG_FILE, _parse_config)


def config_problem(folder: Path, cache: FileCache) -> str | None:
    """Return why the configuration that was read last is damaged; None if it is not."""
    return cache.problem(folder / CONFIG_FILE)


def shown_options(config: Config) -> dict[str, Any]:
    """Return the options of a configuration for a page, without secrets."""
    options = flat_options(config)
    return redact_options({key: options[key] for key in options if key not in HIDDEN_OPTIONS})


def differing_options(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the options that do not have the same value in all rows."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    missing = object()
    return [
        name for name in names if any(row.get(name, missing) != rows[0].get(name) for row in rows)
    ]


def task_stage_names(task: TaskConfig, rows: Iterable[Row]) -> list[str]:
    """Return each stage of a task in words, see `stage_names`."""
    if task.adapter is None:
        return stage_names(task.env_id, "", (), rows)
    adapter = task.adapter
    return stage_names(task.env_id, adapter.progress_signal, adapter.stage_thresholds, rows)


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


def data_summary(folder: Path, config: Config, cache: FileCache) -> DataSummary | None:
    """Return the data set of a run; None if its `data.json` is missing or damaged."""
    path = folder / DATA_MANIFEST_FILE
    counts = cache.read_json(path, _counts, "The data set is not shown.")
    if counts is None:
        return None
    num_train, num_val, num_steps = counts
    return DataSummary(
        path=redact(config.data.dataset_dir),
        format=config.data.format,
        num_train=num_train,
        num_val=num_val,
        num_steps=num_steps,
        cameras=list(config.agent.camera_names),
    )


def _parse_config(content: bytes) -> Config:
    return config_from_dict(parse_file(content, CONFIG_FILE))


def _counts(manifest: Any) -> Counts:
    episodes = manifest["episodes"]
    num_steps = sum(int(episode[1]) for episode in episodes)
    return len(episodes), len(manifest.get(VAL_EPISODES_KEY, ())), num_steps
