"""The common part of run folders and sweep folders: one writer at a time, and requests to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_ray.claims import claim, require_unclaimed
from imf_ray.files import retry_io, retrying
from imf_ray.folders import TRIALS_DIR
from imf_ray.storage import (
    authoritative_path,
    display_path,
    exists,
    local_dir,
    remote_path,
    storage_errors,
    to_local,
)

STOP_FILE = "stop_requested"


@dataclass(frozen=True)
class StoppableDir:
    """The folder of a run or a sweep, which has one writer at a time and can be asked to stop.

        .claim            names the writer, see `imf_ray.claims`
        stop_requested    exists from the request to stop until the run has saved its checkpoint

    `path` is always local. If the folder is kept at a URL, `path` is this machine's copy of it.
    Unpickling on another machine gives the path of that machine's copy. Requests to stop are
    written to the URL itself. Text is taken for a path or URL, as on the command line.
    """

    path: Path

    def __post_init__(self) -> None:
        path = local_dir(self.path) if isinstance(self.path, str) else to_local(self.path)
        object.__setattr__(self, "path", path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        """Return the path as the user wrote it: the URL if the folder has one."""
        return display_path(self.path)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def sweep_path(self) -> Path | None:
        """The folder of the sweep that this run is a trial of; None for other folders."""
        # SWEEP/trials/NAME is the run folder of a trial.
        return self.path.parents[1] if self.path.parent.name == TRIALS_DIR else None

    @property
    def is_remote(self) -> bool:
        """True if the folder is a local copy of a URL."""
        return remote_path(self.path) is not None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Exclude other writers while the `with` block runs.

        Raises:
            ClaimedError: another process trains this run or runs this sweep, or the sweep that a
                run belongs to, or a trial of a sweep.
        """
        with claim(self.path, "choose another run_name or storage_path"):
            for folder in self._related_folders():
                require_unclaimed(folder, "choose another run_name or storage_path")
            yield

    def _related_folders(self) -> Iterable[Path]:
        """Return the folders that may have no other writer either."""
        return [] if self.sweep_path is None else [self.sweep_path]

    def request_stop(self) -> None:
        """Ask the run or sweep to save its checkpoints and stop.

        Raises:
            StorageError: the request cannot be written; not retried.
        """
        request = authoritative_path(self.path) / STOP_FILE
        with storage_errors(request, "written"):
            request.touch()

    @retrying
    def clear_stop(self) -> None:
        """Delete the request to stop, if there is one."""
        request = authoritative_path(self.path) / STOP_FILE
        with storage_errors(request, "deleted"):
            request.unlink(missing_ok=True)

    def stop_requested(self, retry: bool = True) -> bool:
        """Return True if a request to stop is pending.

        Args:
            retry: retry while the storage cannot be reached, instead of raising `StorageError`.
        """
        request = authoritative_path(self.path) / STOP_FILE
        return retry_io(exists, request) if retry else exists(request)
