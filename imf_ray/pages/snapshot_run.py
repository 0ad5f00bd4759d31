"""The content of a single run's page."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path

from imf_ray.errors import UserError
from imf_ray.folders import TRIALS_DIR
from imf_ray.pages import commands
from imf_ray.pages.curve_log import MAX_POINTS
from imf_ray.pages.file_cache import FileCache
from imf_ray.pages.launch_history import LaunchHistory
from imf_ray.pages.media_files import MediaFinder
from imf_ray.pages.model import Row, Snapshot, State
from imf_ray.pages.run_folder import RunFolder
from imf_ray.pages.stored_config import (
    StoredConfig,
    config_problem,
    data_summary,
    read_config,
)
from imf_ray.storage import MAX_NAME_BYTES, display_path


class RunReader:
    """Reads the folder of a run, or of one trial of a sweep, again and again.

    Args:
        folder: local folder of the run.
        cache: contents of small files.
        links: as in `SnapshotReader`; a run has no pages below its own.
    """

    def __init__(self, folder: Path, cache: FileCache, links: bool = False) -> None:
        self._folder, self._cache = folder, cache
        self.run = RunFolder(folder, cache)
        is_trial = folder.parent.name == TRIALS_DIR
        self._history = LaunchHistory(folder.parents[1] if is_trial else folder)

    def read(self, now: float, media: MediaFinder) -> Snapshot:
        """Return the current content, see `SweepReader.read`."""
        config, row = self.read_row(now)
        return Snapshot(
            kind="run",
            title=self._folder.name,
            path=display_path(self._folder),
            read_at=now,
            state=row.state,
            rows=[row],
            stage_names=[] if config is None else config.stage_names([row]),
            data=None if config is None else data_summary(self._folder, config, self._cache),
            options={} if config is None else config.shown_options(),
            launches=self._history.launches,
            commands=self._commands(config, row),
            media=media.find(
                [*self.run.videos(), *self.run.evaluation_videos(), *self.run.images()]
            ),
        )

    def read_row(self, now: float) -> tuple[StoredConfig | None, Row]:
        """Return the configuration of the run, and its row."""
        self._history.update()
        self.run.update()
        config = read_config(self._folder, self._cache)
        row = self.run.row(
            name=self._folder.name,
            label=self._folder.name,
            max_steps=None if config is None else config.max_steps,
            now=now,
            max_points=MAX_POINTS,
            has_ended=self._history.has_ended,
        )
        problem = config_problem(self._folder, self._cache)
        notes = [*row.notes, *([] if problem is None else [problem])]
        row = dataclasses.replace(row, notes=notes)
        if self.run.record is None and self._history.error is not None:
            # A failure after the last update, such as that of all validations, loses no update.
            state = row.state if row.state == State.FINISHED else State.FAILED
            row = dataclasses.replace(row, state=state, error=self._history.error)
        return config, row

    def _commands(self, stored: StoredConfig | None, row: Row) -> dict[str, str]:
        offered = {}
        if stored is not None and stored.config is not None:
            with suppress(UserError):  # the options do not fit this version
                name = f"{row.name}-again"[-MAX_NAME_BYTES:]
                offered[commands.TRAIN_AGAIN] = commands.train_command(stored.config, name)
                if row.state != State.FINISHED and self.run.record is None:
                    offered[commands.RESUME] = commands.train_command(stored.config, row.name)
        return {**offered, **row.commands}
