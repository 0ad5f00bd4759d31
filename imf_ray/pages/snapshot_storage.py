"""The content of the page of a folder of runs, sweeps and comparisons."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from imf_ray.folders import FolderKind, folder_kind
from imf_ray.pages.file_cache import FileCache
from imf_ray.pages.media_files import MediaFinder
from imf_ray.pages.model import Row, Snapshot, State
from imf_ray.pages.snapshot_policies import ComparisonReader, EvaluationReader
from imf_ray.pages.snapshot_run import RunReader
from imf_ray.pages.snapshot_sweep import SweepReader
from imf_ray.pages.stored_config import differing_options
from imf_ray.storage import display_path
from imf_ray.sweep.search_space import short_names

RowReader = RunReader | SweepReader | ComparisonReader | EvaluationReader
ROW_READERS: dict[FolderKind, type[RowReader]] = {
    FolderKind.RUN: RunReader,
    FolderKind.SWEEP: SweepReader,
    FolderKind.COMPARISON: ComparisonReader,
    FolderKind.EVALUATION: EvaluationReader,
}
"""The reader of each kind of folder that is one row."""
COMPARISONS_DIR = "comparisons"
"""Folder of the comparisons in a storage folder."""
ACTIVE = (State.RUNNING, State.STALLED, State.PENDING)
"""States of rows that may still change, the most important one first."""
Number = TypeVar("Number", int, float)
MAX_VARIED = 8
"""Largest number of differing options that are columns of the table."""


class StorageReader:
    """Reads a folder of runs, sweeps, comparisons and evaluations; each of them is one row.

    Args:
        folder: local folder.
        cache: contents of small files.
        links: rows have pages of their own.
    """

    def __init__(self, folder: Path, cache: FileCache, links: bool) -> None:
        self._folder, self._cache, self._links = folder, cache, links
        self._readers: dict[tuple[str, int], RowReader] = {}
        """Reader of each folder, by its path in this one and its inode."""

    def read(self, now: float, media: MediaFinder) -> Snapshot:
        """Return the current content, see `SweepReader.read`. It has no media."""
        self._find_folders()
        rows, options = [], {}
        for (name, _), reader in self._readers.items():
            if isinstance(reader, RunReader):
                config, row = reader.read_row(now)
                if config is not None:
                    options[name] = config.shown_options()
            else:
                content = reader.read(now, MediaFinder(self._folder))
                row = (_sweep_row if content.kind == "sweep" else _policies_row)(name, content)
            rows.append(row)
        varied = differing_options(options.values())
        rows = [
            dataclasses.replace(
                row, params={k: v for k, v in options.get(row.name, {}).items() if k in varied}
            )
            for row in rows
        ]
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
        """Find new folders. Those that have no page yet are looked at each time."""
        folders = dict(_subfolders(self._folder))
        nested = _subfolders(self._folder / COMPARISONS_DIR)
        folders |= {f"{COMPARISONS_DIR}/{name}": inode for name, inode in nested}
        readers = {key: self._readers.get(key) or self._open(key[0]) for key in folders.items()}
        self._readers = {key: reader for key, reader in readers.items() if reader is not None}

    def _open(self, name: str) -> RowReader | None:
        """Return the reader of a folder; None if it has no page."""
        path = self._folder / name
        reader_class = ROW_READERS.get(folder_kind(path))
        return None if reader_class is None else reader_class(path, self._cache, False)


def _subfolders(folder: Path) -> list[tuple[str, int]]:
    """Return name and inode of the folders in a folder, sorted; none if it is missing."""
    if not folder.is_dir():
        return []
    return sorted((entry.name, entry.inode()) for entry in os.scandir(folder) if entry.is_dir())


def _sweep_row(name: str, sweep: Snapshot) -> Row:
    """Return a sweep as one row: the sums over its trials, and the result of the best one."""
    best = next((row for row in sweep.rows if row.checkpoint is not None), None)
    rows = sweep.rows
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
        time_left_s=sweep.time_left_s,
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


def _policies_row(name: str, content: Snapshot) -> Row:
    """Return a comparison or evaluation as one row, with the result of the best policy."""
    best = next((row for row in content.rows if row.success is not None), None)
    ended = [launch.started_at + (launch.wall_s or 0.0) for launch in content.launches[-1:]]
    row = Row(name, name, content.state) if best is None else best
    return dataclasses.replace(
        row,
        name=name,
        label=name,
        state=content.state,
        last_entry_age_s=content.read_at - ended[0] if ended else None,
        commands=content.commands,
        curves=(),
        media=(),
        notes=[f"{content.kind.capitalize()} of {len(content.rows)} policies.", *content.notes],
    )


def _total(values: Sequence[Number | None]) -> Number | None:
    """Return the sum of the known values; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def _age(row: Row) -> tuple[bool, float, str]:
    """Return a sort key: rows that may still change come first, then the newest log lines."""
    age = float("inf") if row.last_entry_age_s is None else row.last_entry_age_s
    return row.state not in ACTIVE, age, row.name
