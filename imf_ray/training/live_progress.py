"""The newest progress of a run, for the bars of whoever started it.

The updates of training, and the episodes of a validation, are counted in small files. They are
written every second or, for a run with a URL, every few seconds, and are no record of the run.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from imf_ray.errors import StorageError
from imf_ray.files import INVALID_JSON, SYNC_INTERVAL_S
from imf_ray.storage import authoritative_path, read_text_or_none, remote_path, upload

UPDATES, VALIDATION, FEATURES = "updates", "validation", "features"
"""Names of the kinds of progress. The last one counts episodes whose images are encoded."""
PROGRESS_DIR = "progress"
WRITE_INTERVAL_S = 1.0
"""Minimum number of seconds between two writes of a local file."""


@dataclass(frozen=True)
class Progress:
    """A number of finished updates or episodes."""

    completed: int
    total: int
    step: int
    """Number of updates of the policy that is trained or validated."""
    time: float
    """Time of writing in seconds since 1970."""


class ProgressWriter:
    """Writes the newest progress of one kind now and then, at the latest with the last count.

    A write that fails is left out: training continues, and the bar moves with the next one.

    Args:
        run_path: the run's folder.
        kind: `UPDATES`, `VALIDATION` or `FEATURES`.
        total: number of updates or episodes.
    """

    def __init__(self, run_path: Path, kind: str, total: int) -> None:
        self._file, self._total = _file(run_path, kind), total
        is_remote = remote_path(run_path) is not None
        self._interval_s = SYNC_INTERVAL_S if is_remote else WRITE_INTERVAL_S
        self._next_write_at = 0.0

    def write(self, completed: int, step: int) -> None:
        """Write that `completed` updates or episodes are done, unless the last write is recent."""
        now = time.monotonic()
        if now < self._next_write_at and completed < self._total:
            return
        self._next_write_at = now + self._interval_s
        progress = Progress(completed, self._total, step, time.time())
        partial = self._file.with_suffix(f".{os.getpid()}.partial")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(asdict(progress)))
            partial.replace(self._file)  # without a sync: nobody needs it after a power failure
            upload(self._file)
        except (OSError, StorageError):
            return


def read_progress(run_path: Path, kind: str) -> Progress | None:
    """Return the newest progress of a kind, or None if there is none or it cannot be read."""
    try:
        text = read_text_or_none(authoritative_path(_file(run_path, kind)))
        return None if text is None else Progress(**json.loads(text))
    except (StorageError, *INVALID_JSON):
        return None


def _file(run_path: Path, kind: str) -> Path:
    return run_path / PROGRESS_DIR / f"{kind}.json"
