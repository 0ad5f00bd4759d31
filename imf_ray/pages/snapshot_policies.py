"""The content of the pages of comparisons and evaluations, whose rows are policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imf_ray.aliases import METRICS, RECORD_SETTINGS, rename_keys
from imf_ray.folders import COMPARISON_FILE, EPISODES_FILE
from imf_ray.labels import short_labels
from imf_ray.pages import commands
from imf_ray.pages.file_cache import FileCache, Version, file_version
from imf_ray.pages.launch_history import LaunchHistory
from imf_ray.pages.media_files import MediaFinder
from imf_ray.pages.model import Pair, Row, Snapshot, State
from imf_ray.pages.run_folder import success_of
from imf_ray.pages.run_log import ACTION_ERROR
from imf_ray.pages.stored_config import (
    differing_options,
    flatten,
    read_config,
    stage_names,
)
from imf_ray.redaction import redact, redact_options
from imf_ray.rollout.record_store import (
    EVALUATIONS_DIR,
    GRID_VIDEO,
    SUMMARY_FILE,
    read_records,
)
from imf_ray.rollout.records import EpisodeRecord, stage_shares, summarize
from imf_ray.storage import display_path
from imf_ray.sweep.search_space import short_names

LABEL_WIDTH = 32
"""Largest width of the label of a policy in characters."""
REPEAT = "Repeat the command that wrote it."


class ComparisonReader:
    """Reads the folder of a comparison again and again; its arguments are those of `RunReader`."""

    def __init__(self, folder: Path, cache: FileCache, links: bool = False) -> None:
        self._folder, self._cache = folder, cache
        self._history = LaunchHistory(folder)

    def read(self, now: float, media: MediaFinder) -> Snapshot:
        """Return the current content, see `SweepReader.read`."""
        self._history.update()
        path = self._folder / COMPARISON_FILE
        content = self._cache.read_json(path, _comparison, REPEAT) or {}
        policies: Mapping[str, Mapping[str, Any]] = content.get("policies", {})
        pairs = [_pair(values) for values in content.get("comparisons", ())]
        checkpoints = {name: _checkpoint(name, values) for name, values in policies.items()}
        configs = {
            name: None if checkpoint is None else read_config(Path(checkpoint), self._cache)
            for name, checkpoint in checkpoints.items()
        }
        options = {
            name: config.shown_options() for name, config in configs.items() if config is not None
        }
        varied = differing_options(options.values())
        labels = short_labels(policies, LABEL_WIDTH)
        seeds = [int(seed) for seed in content.get("seeds", ())]
        rows = []
        for name, values in policies.items():
            params = {key: options[name][key] for key in varied if key in options.get(name, {})}
            rows.append(_policy_row(name, labels[name], values, params, checkpoints[name], seeds))
        compared = {name for pair in pairs for name in (pair.a, pair.b)}
        ranked = sorted(
            (row for row in rows if row.name in compared),
            key=lambda row: 0.0 if row.success is None else -row.success.rate,
        )
        shared = next(iter(options.values()), {})
        records = {name: Path(str(values.get("records", ""))) for name, values in policies.items()}
        return Snapshot(
            kind="comparison",
            title=self._folder.name,
            path=display_path(self._folder),
            read_at=now,
            state=self._history.outcome or State.FINISHED,
            rows=ranked,
            varied=short_names(varied),
            stage_names=next((_stage_names(values, rows) for values in policies.values()), []),
            baselines=[row for row in rows if row.name not in compared],
            pairs=pairs,
            options={key: value for key, value in shared.items() if key not in varied},
            launches=self._history.launches,
            commands=_comparison_commands(ranked, len(seeds)),
            media=media.find(
                (folder / GRID_VIDEO, f"Episodes of {labels[name]}, failures first")
                for name, folder in records.items()
            ),
            notes=_notes(self._cache.problem(path), self._history),
        )


class EvaluationReader:
    """Reads the folder of an evaluation again and again; its arguments are those of `RunReader`."""

    def __init__(self, folder: Path, cache: FileCache, links: bool = False) -> None:
        self._folder, self._cache = folder, cache
        self._history = LaunchHistory(folder)
        self._version: Version | None = None
        self._records: list[EpisodeRecord] = []

    def read(self, now: float, media: MediaFinder) -> Snapshot:
        """Return the current content, see `SweepReader.read`."""
        self._history.update()
        path = self._folder / SUMMARY_FILE
        summary = self._cache.read_json(path, _summary, REPEAT)
        is_running = summary is None or (self._history.launches and not self._history.has_ended)
        if is_running or summary is None:
            summary = self._running_summary()
        settings = rename_keys(summary.get("settings", {}), RECORD_SETTINGS)
        row = _policy_row(self._folder.name, self._folder.name, summary, {}, None)
        errors: Mapping[str, str] = summary.get("errors", {})
        return Snapshot(
            kind="evaluation",
            title=self._folder.name,
            path=display_path(self._folder),
            read_at=now,
            state=self._history.outcome or (State.RUNNING if is_running else State.FINISHED),
            rows=[row],
            stage_names=_stage_names(summary, [row]),
            options=redact_options(dict(flatten(settings))),
            launches=self._history.launches,
            media=media.find([(self._folder / GRID_VIDEO, "Episodes, failures first")]),
            notes=[
                *(f"Seed {seed}: {redact(str(error))}" for seed, error in errors.items()),
                *_notes(self._cache.problem(path), self._history),
            ],
        )

    def _running_summary(self) -> dict[str, Any]:
        """Return the summary of the episodes that have ended so far."""
        path = self._folder / EPISODES_FILE
        version = file_version(path)
        if version != self._version:
            self._version, self._records = version, read_records(path)
        if not self._records:
            return {}
        return {
            **summarize(self._records).metrics(),
            "settings": self._records[0].settings,
            "errors": {record.seed: record.error for record in self._records if record.error},
        }


def _policy_row(
    name: str,
    label: str,
    metrics: Mapping[str, Any],
    params: Mapping[str, Any],
    checkpoint: str | None,
    seeds: Sequence[int] = (),
) -> Row:
    metrics = rename_keys(metrics, METRICS)
    return Row(
        name=name,
        label=label,
        state=State.FINISHED,
        params=params,
        success=success_of(metrics),
        reward=metrics.get("rollout/return_mean"),
        stages=list(stage_shares(metrics).values()),
        action_error=metrics.get(ACTION_ERROR),
        checkpoint=None if checkpoint is None else redact(checkpoint),
        commands={} if checkpoint is None else commands.checkpoint_commands(checkpoint, seeds),
    )


def _checkpoint(name: str, values: Mapping[str, Any]) -> str | None:
    """Return the checkpoint of a policy if it lies next to the folder of its records.

    The records of `RUN/checkpoint_00001000` are in `RUN/evaluations/checkpoint_00001000-HASH`.
    """
    records = str(values.get("records", ""))
    run, _, folder = records.rpartition(f"/{EVALUATIONS_DIR}/")
    checkpoint = name.rpartition("/")[2]
    return f"{run}/{checkpoint}" if run and folder.startswith(f"{checkpoint}-") else None


def _pair(values: Mapping[str, Any]) -> Pair:
    return Pair(
        a=values["a"],
        b=values["b"],
        difference=float(values["difference"]),
        low=float(values["low"]),
        high=float(values["high"]),
        p_value=float(values["p_value"]),
        only_a=int(values["only_a"]),
        only_b=int(values["only_b"]),
        verdict=str(values["verdict"]),
    )


def _comparison_commands(ranked: Sequence[Row], num_episodes: int) -> dict[str, str]:
    checkpoints = [row.checkpoint for row in ranked if row.checkpoint is not None]
    if not checkpoints:
        return {}
    offered = dict(ranked[0].commands) if ranked[0].checkpoint is not None else {}
    if len(checkpoints) == len(ranked):
        command = commands.compare_command(checkpoints, num_episodes)
        offered["Compare them on more episodes"] = command
    return offered


def _notes(problem: str | None, history: LaunchHistory) -> list[str]:
    return [note for note in (problem, history.error) if note is not None]


def _comparison(content: Any) -> dict[str, Any]:
    for values in content["policies"].values():
        rename_keys(values, METRICS)
    for values in content["comparisons"]:
        _pair(values)
    for seed in content.get("seeds", ()):
        int(seed)
    return dict(content)


def _stage_names(values: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return the names of the stages of the task in recorded settings."""
    task = values.get("settings", {}).get("task", {})
    adapter = task.get("adapter") or {}
    signal = str(adapter.get("progress_signal", adapter.get("progress", "")))
    thresholds = adapter.get("stage_thresholds", adapter.get("stages", ()))
    return stage_names(str(task.get("env_id")), signal, thresholds, rows)


def _summary(content: Any) -> dict[str, Any]:
    settings = content.get("settings", {})
    rename_keys(settings, RECORD_SETTINGS)
    content.get("errors", {}).items()
    return dict(rename_keys(content, METRICS))
