"""The content of a sweep's page."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imf_ray.aliases import BASELINES_FILES, rename_options
from imf_ray.checkpoint_dir import CONFIG_FILE, checkpoint_rank_key
from imf_ray.config import to_override
from imf_ray.errors import UserError
from imf_ray.folders import SPACE_FILE, TRIALS_DIR
from imf_ray.pages import commands
from imf_ray.pages.charts_curves import MAX_CURVES
from imf_ray.pages.curve_log import MAX_POINTS
from imf_ray.pages.file_cache import FileCache, Version, file_version
from imf_ray.pages.formats import value_text
from imf_ray.pages.launch_history import LaunchHistory
from imf_ray.pages.media_files import MediaFinder
from imf_ray.pages.model import Row, Snapshot, State
from imf_ray.pages.run_folder import RunFolder, success_of
from imf_ray.pages.stored_config import StoredConfig, data_summary, read_config
from imf_ray.redaction import redact_options
from imf_ray.rollout.policy_spec import PolicyKind
from imf_ray.rollout.records import stage_shares
from imf_ray.storage import MAX_NAME_BYTES, display_path, is_remote
from imf_ray.sweep.search_space import short_names
from imf_ray.sweep.sweep_dir import (
    BASELINES_FILE,
    BEST_VIDEO,
    EXPERT_VIDEO,
    SavedSpace,
    rename_baselines,
)

MAX_TOTAL_POINTS = 10_000
"""Number of points that the curves of one metric have on a page; each has at least 40."""
MIN_POINTS = 40
MAX_LABEL_OPTIONS = 2
"""Number of varied options up to which their values are the label of a trial."""


class SweepReader:
    """Reads the folder of a sweep again and again.

    Args:
        folder: local folder of the sweep.
        cache: contents of small files.
        links: rows have pages of their own.
    """

    def __init__(self, folder: Path, cache: FileCache, links: bool) -> None:
        self._folder, self._cache, self._links = folder, cache, links
        self._history = LaunchHistory(folder)
        self._runs: dict[str, RunFolder] = {}
        self._trials_version: Version | None = None
        self._again: tuple[SavedSpace, str, str | None] | None = None
        """Saved space, best trial, and the command that trains this trial again."""

    def read(self, now: float, media: MediaFinder) -> Snapshot:
        """Return the current content.

        Args:
            now: time in seconds since 1970.
            media: finds the videos of the page.
        """
        self._history.update()
        saved = self._cache.read_json(
            self._folder / SPACE_FILE,
            lambda content: SavedSpace.from_json(content, modified_at=0.0),
            "The options that vary are not shown.",
        )
        planned = {} if saved is None else _planned_trials(saved)
        self._find_runs(planned)
        with_curves = self._best_ended()
        for name, run in self._runs.items():
            run.update(has_curves=name in with_curves)
        first, config = self._first_config()
        videos = media.find(
            [
                (self._folder / BEST_VIDEO, "The best policy, first validation episode"),
                (self._folder / EXPERT_VIDEO, "The scripted expert, same episode"),
            ]
        )
        rows = self._rows(saved, planned, config, now, media)
        baselines = self._baselines()
        best = next((row for row in rows if row.checkpoint is not None), None)
        options = {} if config is None else config.shown_options()
        varied = [] if saved is None else list(saved.space.with_current_names().varied)
        return Snapshot(
            kind="sweep",
            title=self._folder.name,
            path=display_path(self._folder),
            read_at=now,
            state=self._state(rows),
            rows=rows,
            varied=short_names(varied),
            is_grid=saved is not None and len(saved.space.grid) == 2 and not saved.space.sample,
            stage_names=[] if config is None else config.stage_names(rows),
            baselines=baselines,
            data=None if config is None else data_summary(first, config, self._cache),
            options={key: value for key, value in options.items() if key not in varied},
            launches=self._history.launches,
            commands=self._commands(saved, rows, best),
            media=videos,
            notes=self._notes(),
        )

    def _find_runs(self, planned: Mapping[str, Any]) -> None:
        trials = self._folder / TRIALS_DIR
        version = file_version(trials)
        if version == self._trials_version and planned.keys() <= self._runs.keys():
            return
        self._trials_version = version
        try:
            existing = [entry.name for entry in os.scandir(trials) if entry.is_dir()]
        except OSError:  # no trial has started
            existing = []
        names = sorted({*planned, *existing})
        self._runs = {
            name: self._runs.get(name) or RunFolder(trials / name, self._cache) for name in names
        }

    def _best_ended(self) -> set[str]:
        """Return the names of the ended trials whose curves may be shown."""
        records = {name: run.read_record() for name, run in self._runs.items()}
        keys = {
            name: checkpoint_rank_key(record.metrics)
            for name, record in records.items()
            if record is not None and "step" in record.metrics
        }
        return set(sorted(keys, key=lambda name: keys[name])[:MAX_CURVES])

    def _first_config(self) -> tuple[Path, StoredConfig | None]:
        """Return the folder of the first trial whose configuration can be read, and the latter."""
        for run in self._runs.values():
            config = read_config(run.path, self._cache)
            if config is not None:
                return run.path, config
        return self._folder, None

    def _rows(
        self,
        saved: SavedSpace | None,
        planned: Mapping[str, Mapping[str, Any]],
        config: StoredConfig | None,
        now: float,
        media: MediaFinder,
    ) -> list[Row]:
        """Return the trials, best first; those without a result follow by name."""
        max_points = max(MIN_POINTS, min(MAX_POINTS, MAX_TOTAL_POINTS // max(1, len(self._runs))))
        short = short_names(list(next(iter(planned.values()), {})))
        ranked: list[tuple[tuple[Any, ...], Row, RunFolder]] = []
        for name, run in self._runs.items():
            params = planned.get(name) or (run.record.params if run.record is not None else {})
            row = run.row(
                name,
                _label(name, params, short),
                params.get("train.max_steps", config.max_steps if config else None),
                now,
                max_points,
                self._history.has_ended,
                redact_options(rename_options(params)),
            )
            metrics = run.best_metrics if row.checkpoint is not None else None
            key = (1,) if metrics is None else (0, *checkpoint_rank_key(metrics))
            ranked.append(((*key, name), row, run))
        ranked.sort(key=lambda item: item[0])
        return [self._with_details(row, run, media) for _, row, run in ranked]

    def _with_details(self, row: Row, run: RunFolder, media: MediaFinder) -> Row:
        """Add the newest video, the command that trains again, and the link to a row."""
        again = {}
        if not is_remote(display_path(run.path)) and row.checkpoint is not None:
            file = to_override("config", str(run.path / CONFIG_FILE))
            name = to_override("run_name", f"{self._folder.name}-{row.name}"[:MAX_NAME_BYTES])
            again = {commands.TRAIN_AGAIN: commands.command("train", file, name)}
        return dataclasses.replace(
            row,
            commands={**row.commands, **again},
            media=media.find([*run.videos()[:1], *run.evaluation_videos()]),
            link=f"{TRIALS_DIR}/{quote(row.name)}/" if self._links else None,
        )

    def _baselines(self) -> list[Row]:
        metrics: dict[str, Mapping[str, Any]] = {}
        for name in (*BASELINES_FILES, BASELINES_FILE):
            path = self._folder / name
            content = self._cache.read_json(path, rename_baselines, "The baselines are not shown.")
            metrics |= content or {}
        rows = []
        for name, values in metrics.items():
            kind = name.partition(":")[0]  # untrained:CHECKPOINT
            rows.append(
                Row(
                    name=kind,
                    label=kind,
                    state=State.FINISHED,
                    success=success_of(values),
                    reward=values.get("rollout/return_mean"),
                    stages=list(stage_shares(values).values()),
                )
            )
        return sorted(rows, key=lambda row: row.name != PolicyKind.EXPERT)

    def _state(self, rows: Sequence[Row]) -> State:
        """Return the state of the sweep."""
        states = {row.state for row in rows}
        if self._history.outcome is not None:
            return State.FINISHED if self._all_recorded() else self._history.outcome
        if self._history.launches or not rows:
            waits = not states & {State.RUNNING, State.STALLED} and states != {State.PENDING}
            states |= {State.RUNNING} if waits else set()  # baselines or videos
        order = (State.RUNNING, State.STALLED, State.PENDING, State.FINISHED, State.STOPPED)
        return next((state for state in order if state in states), State.FAILED)

    def _all_recorded(self) -> bool:
        """Return True if every trial has ended."""
        return all(run.record is not None for run in self._runs.values())

    def _commands(
        self, saved: SavedSpace | None, rows: Sequence[Row], best: Row | None
    ) -> dict[str, str]:
        offered = {}
        if saved is not None and best is not None and best.checkpoint is not None:
            train = self._train_command(saved, best.name)
            if train is not None:
                offered["Train the best trial again"] = train
            checkpoint = commands.checkpoint_commands(best.checkpoint)
            offered["Evaluate the best checkpoint on fresh seeds"] = checkpoint[commands.EVALUATE]
            offered["Export the best checkpoint"] = checkpoint[commands.EXPORT]
        checkpoints = [row.checkpoint for row in rows if row.checkpoint is not None]
        if len(checkpoints) > 1:
            offered[commands.COMPARE] = commands.compare_command(checkpoints[:2])
        is_complete = all(row.state in (State.FINISHED, State.STOPPED) for row in rows)
        if saved is not None and not (is_complete and self._all_recorded()):
            name = to_override("run_name", self._folder.name)
            storage = to_override("storage_path", display_path(self._folder.parent))
            offered[commands.RESUME] = commands.command("tune", "resume=auto", name, storage)
        return offered

    def _train_command(self, saved: SavedSpace, trial: str) -> str | None:
        """Return the command that trains a trial again; None if its options are unknown."""
        if self._again is None or self._again[:2] != (saved, trial):
            command: str | None = None
            stored = read_config(self._runs[trial].path, self._cache)
            if stored is not None and stored.config is not None:
                with suppress(UserError):  # the options do not fit this version
                    name = f"{self._folder.name}-best"[:MAX_NAME_BYTES]
                    command = commands.train_command(stored.config, name)
            self._again = (saved, trial, command)
        return self._again[2]

    def _notes(self) -> list[str]:
        files = (SPACE_FILE, *BASELINES_FILES, BASELINES_FILE)
        problems = (self._cache.problem(self._folder / name) for name in files)
        notes = [problem for problem in problems if problem is not None]
        if self._history.error is not None and not self._all_recorded():
            return [*notes, self._history.error]
        return notes  # failed trials say themselves why


def _planned_trials(saved: SavedSpace) -> dict[str, dict[str, Any]]:
    """Return the options of all trials by name; empty if they can be sampled only with Ray."""
    if saved.trials or saved.space.sample:
        return saved.trials
    return saved.space.trials()


def _label(name: str, params: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Return the values of few options, or the number of the trial."""
    if params and len(params) <= MAX_LABEL_OPTIONS:
        return " ".join(f"{short.get(key, key)}={value_text(params[key])}" for key in params)
    number = name.partition("-")[0]
    return number.lstrip("0").rjust(2, "0") if number.isdigit() else name
