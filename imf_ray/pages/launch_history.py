"""The launches of a run, sweep, comparison or evaluation, as a page shows them."""

from __future__ import annotations

from pathlib import Path

from imf_ray.files import read_json_lines
from imf_ray.folders import LAUNCHES_FILE
from imf_ray.launches import INTERRUPTED, LaunchEnd, LaunchStart, parse_launch
from imf_ray.pages.file_cache import Version, file_version
from imf_ray.pages.model import Launch, State


class LaunchHistory:
    """Reads the `launches.jsonl` of a folder whenever it changes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LAUNCHES_FILE
        self._version: Version | None = None
        self.launches: list[Launch] = []
        """The launches in the order in which they started; empty for folders without records."""

    def update(self) -> None:
        """Read the file if it changed."""
        version = file_version(self._path)
        if version == self._version:
            return
        self._version = version
        records = read_json_lines(self._path, parse_launch).rows
        # A line whose upload failed and was tried again is there twice.
        starts = {record.id: record for record in records if isinstance(record, LaunchStart)}
        ends = {record.id: record for record in records if isinstance(record, LaunchEnd)}
        self.launches = [_launch(start, ends.get(start.id)) for start in starts.values()]

    @property
    def has_ended(self) -> bool:
        """True if the last launch has ended; False if it is not known."""
        return bool(self.launches) and self.launches[-1].wall_s is not None

    @property
    def outcome(self) -> State | None:
        """How the last launch ended; None if it has not, or if it is not known."""
        if not self.has_ended:
            return None
        error = self.launches[-1].error
        if error is None:
            return State.FINISHED
        return State.STOPPED if error == INTERRUPTED else State.FAILED

    @property
    def error(self) -> str | None:
        """Why the last launch failed; None if it did not."""
        return self.launches[-1].error if self.outcome == State.FAILED else None


def _launch(start: LaunchStart, end: LaunchEnd | None) -> Launch:
    return Launch(
        started_at=start.started_at,
        command=start.command,
        versions=start.versions,
        host=start.host,
        pid=start.pid,
        wall_s=None if end is None else end.wall_s,
        cpu_s=None if end is None else end.cpu_s,
        error=None if end is None else end.error,
    )
