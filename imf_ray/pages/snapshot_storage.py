"""The content of the page of a folder of runs and sweeps."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from imf_ray.folders import FolderKind, folder_kind
from imf_ray.pages.file_cache import FileCache, Version, file_version
from imf_ray.pages.media_files import MediaFinder
from imf_ray.pages.model import Row, Snapshot, State
from imf_ray.pages.snapshot_run import RunReader
from imf_ray.pages.snapshot_sweep import SweepReader
from imf_ray.pages.stored_config import differing_options, shown_options
from imf_ray.storage import display_path
from imf_ray.sweep.search_space import short_names

ACTIVE = (State.RUNNING, State.STALLED, State.PENDING)
"""States of rows that may still change, the most important one first."""
Number = TypeVar("Number", int, float)
MAX_VARIED = 8
"""Largest number of differing options that are columns of the table."""


class StorageReader:
    """Reads a folder of runs and sweeps again and again; a sweep is one row.

    Args:
        folder: local folder.
        cache: contents of small files.
        links: rows have pages of their own.
    """

    def __init__(self, folder: Path, cache: FileCache, links: bool) -> None:
        self._folder, self._cache, self._links = folder, cache, links
        self._version: Version | None = None
        self._runs: dict[str, RunReader] = {}
        self._sweeps: dict[str, SweepReader] = {}

    def read(self, now: float, media: MediaFinder) -> Snapshot:
        """Return the current content, see `SweepReader.read`. It has no media."""
        self._find_folders()
        rows, options = [], {}
        for name, run in self._runs.items():
            config, row = run.read_row(now)
            rows.append(row)
            if config is not None:
                options[name] = shown_options(config)
        varied = differing_options(options.values())
        rows = [
            dataclasses.replace(
                row, params={k: v for k, v in options.get(row.name, {}).items() if k in varied}
            )
            for row in rows
        ]
        for name, sweep in self._sweeps.items():
            rows.append(_sweep_row(name, sweep.read(now, MediaFinder(self._folder))))
        rows.sort(key=_age)
        if self._links:
            rows = [dataclasses.replace(row, link=f"{quote(row.name)}/") for row in rows]
        shared = next(iter(options.values()), {})
        states = {row.state for row in rows}
        return Snapshot(
            kind="storage",
            title=self._folder.name,
            path=display_path(self._folder),
            read_at=now,
            state=next((state for state in ACTIVE if state in states), State.FINISHED),
            rows=rows,
            varied=short_names(varied[:MAX_VARIED]),
            options={key: value for key, value in shared.items() if key not in varied},
        )

    def _find_folders(self) -> None:
        version = file_version(self._folder)
        if version == self._version:
            return
        self._version = version
        runs, sweeps = {}, {}
        for entry in sorted(os.scandir(self._folder), key=lambda entry: entry.name):
            if not entry.is_dir():
                continue
            path = self._folder / entry.name
            kind = folder_kind(path)
            if kind == FolderKind.RUN:
                runs[entry.name] = self._runs.get(entry.name) or RunReader(path, self._cache)
            elif kind == FolderKind.SWEEP:
                old = self._sweeps.get(entry.name)
                sweeps[entry.name] = old or SweepReader(path, self._cache, links=False)
        self._runs, self._sweeps = runs, sweeps


def _sweep_row(name: str, sweep: Snapshot) -> Row:
    """Return a sweep as one row: the sums over its trials, and the result of the best one."""
    best = next((row for row in sweep.rows if row.checkpoint is not None), None)
    rows = sweep.rows
    times = [row.time_left_s for row in rows if row.time_left_s is not None]
    ages = [row.last_entry_age_s for row in rows if row.last_entry_age_s is not None]
    speeds = [row.samples_per_s for row in rows if row.state == State.RUNNING and row.samples_per_s]
    ended = sum(row.state in (State.FINISHED, State.STOPPED, State.FAILED) for row in rows)
    failed = [row for row in rows if row.state == State.FAILED]
    errors = [f"{len(failed)} of {len(rows)} trials failed."] if failed else []
    return Row(
        name=name,
        label=name,
        state=sweep.state,
        success=None if best is None else best.success,
        reward=None if best is None else best.reward,
        stages=() if best is None else best.stages,
        action_error=None if best is None else best.action_error,
        step=_total([row.step for row in rows]),
        max_steps=_total([row.max_steps for row in rows]),
        samples_per_s=sum(speeds) if speeds else None,
        time_left_s=max(times, default=None),
        last_entry_age_s=min(ages, default=None),
        restarts=sum(row.restarts for row in rows),
        wall_s=_total([row.wall_s for row in rows]),
        cpu_s=_total([row.cpu_s for row in rows]),
        error=errors[0] if errors else None,
        checkpoint=None if best is None else best.checkpoint,
        curves=() if best is None else best.curves,
        commands=sweep.commands,
        notes=[f"Sweep: {ended} of {len(rows)} trials have ended.", *sweep.notes],
    )


def _total(values: Sequence[Number | None]) -> Number | None:
    """Return the sum of the known values; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def _age(row: Row) -> tuple[bool, float, str]:
    """Return a sort key: rows that may still change come first, then the newest log lines."""
    age = float("inf") if row.last_entry_age_s is None else row.last_entry_age_s
    return row.state not in ACTIVE, age, row.name
