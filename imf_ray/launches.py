"""Records of the starts and resumes of a run, sweep or comparison, in its `launches.jsonl`.

A launch writes one line when it starts and one when it ends. A launch without the second line is
still running, or was killed.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import imf_ray
from imf_ray.errors import StorageError, UserError
from imf_ray.files import append_line
from imf_ray.folders import LAUNCHES_FILE
from imf_ray.redaction import redact, redact_command
from imf_ray.storage import download

PACKAGES = ("torch", "ray", "mujoco")
"""Packages whose versions are recorded."""
INTERRUPTED = "interrupted"
"""Error of a launch that was ended by Ctrl-C or a signal."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LaunchStart:
    """The first line of a launch."""

    id: str
    started_at: float
    """Time in seconds since 1970."""
    command: str
    """The command line, quoted for a shell, without secrets."""
    versions: dict[str, str] = field(default_factory=dict)
    """Version of the package with its commit if it runs from a checkout, of Python and others."""
    host: str = ""
    pid: int = 0


@dataclass(frozen=True)
class LaunchEnd:
    """The second line of a launch."""

    id: str
    wall_s: float
    cpu_s: float
    """CPU time of the process and its ended children, without Ray's processes."""
    error: str | None = None
    """Why the launch failed; `INTERRUPTED` after Ctrl-C or a signal."""


@contextmanager
def recorded_launch(folder: Path, command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Record the `with` block as a launch in the `launches.jsonl` of a folder.

    Args:
        command: name of the command, such as `train`.
        arguments: its arguments, unquoted.

    Raises:
        StorageError: the first line cannot be written, for example because the disk is full.
    """
    start = LaunchStart(
        id=uuid.uuid4().hex,
        started_at=time.time(),
        command=redact_command(["imf-ray", command, *arguments]),
        versions=versions(),
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    _append(folder, asdict(start))  # not retried: the user still waits for the start
    began, cpu_before, error = time.monotonic(), _cpu_s(), None
    try:
        yield
    except KeyboardInterrupt:
        error = INTERRUPTED
        raise
    except Exception as failure:
        error = redact(str(failure) if isinstance(failure, UserError) else repr(failure))
        raise
    finally:
        wall_s = time.monotonic() - began
        end = LaunchEnd(start.id, wall_s, _cpu_s() - cpu_before, error)
        try:
            _append(folder, asdict(end))
        except StorageError as failure:  # must not hide the outcome of the launch
            log.warning("The end of the launch is not recorded: %s", failure)


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the main libraries."""
    commit = checkout_commit()
    own = f"{imf_ray.__version__} ({commit[:12]})" if commit else imf_ray.__version__
    by_name = {"imf_ray": own, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_name[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return by_name


def checkout_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, or None.

    The files of git are read instead of starting it. Changes that are not committed are not seen.
    """
    git_dir = Path(imf_ray.__file__).parents[1] / ".git"
    try:
        if git_dir.is_file():  # a worktree: "gitdir: PATH"
            git_dir = Path(git_dir.read_text().partition(":")[2].strip())
        head = (git_dir / "HEAD").read_text().strip()
        reference = head.removeprefix("ref: ")
        if reference == head:
            return head
        common = git_dir / "commondir"
        shared_dir = git_dir / common.read_text().strip() if common.is_file() else git_dir
        if (shared_dir / reference).is_file():
            return (shared_dir / reference).read_text().strip()
        packed = (shared_dir / "packed-refs").read_text().splitlines()
        return next(line.split()[0] for line in packed if line.endswith(f" {reference}"))
    except (OSError, ValueError, StopIteration, IndexError):  # no checkout, or another layout
        return None


def parse_launch(row: Any) -> LaunchStart | LaunchEnd:
    """Make the record of a line of `launches.jsonl`.

    Raises:
        KeyError, TypeError, ValueError: it is not such a line.
    """
    record = LaunchEnd(**row) if "wall_s" in row else LaunchStart(**row)
    numbers = ("wall_s", "cpu_s") if isinstance(record, LaunchEnd) else ("started_at", "pid")
    for name in numbers:
        if not isinstance(getattr(record, name), (int, float)):
            raise TypeError(f"{name} is not a number")
    return record


def _append(folder: Path, line: dict[str, Any]) -> None:
    path = folder / LAUNCHES_FILE
    download(path)  # lines of launches on other machines
    append_line(path, json.dumps(line))


def _cpu_s() -> float:
    """Return the CPU time of this process and of its ended children in seconds."""
    return sum(os.times()[:4])
