"""Follows a folder or URL of runs in a terminal: `imf-ray status DIR --watch`."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from imf_ray.errors import UserError
from imf_ray.pages.formats import time_text
from imf_ray.pages.mirror import Mirror
from imf_ray.pages.model import Snapshot
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.pages.terminal_view import TerminalView
from imf_ray.storage import is_remote, local_dir

INTERVAL_S, MAX_CPU_FRACTION = 2.0, 0.05
"""Minimum number of seconds between two reads of the folder, and maximum fraction of a core that
they may take. Very many trials are therefore read less often."""
PLAIN_INTERVAL_S = 60.0
"""Minimum number of seconds between two tables for a file or pipe, as long as no state and no
success rate changes."""
Read = Callable[[], Snapshot]


@contextmanager
def open_reader(location: str) -> Iterator[Read]:
    """Yield a function that returns the content of a folder or URL, and reads only what changed.

    The function raises `UserError` or `OSError` while the folder or URL cannot be read.

    Raises:
        UserError: the URL's file system is unknown or needs a package that is not installed.
    """
    if not is_remote(location):
        yield SnapshotReader(local_dir(location), links=False).read
        return
    mirror = Mirror(location, media_suffixes=())
    reader = SnapshotReader(mirror.root, links=False)

    def read() -> Snapshot:
        mirror.sync(mirror.root)
        return reader.read()

    try:
        yield read
    finally:
        mirror.close()


def watch(read: Read, console: Console) -> None:
    """Show what `read` returns again and again until Ctrl-C.

    A terminal shows the newest content, and keeps the last one after Ctrl-C. Elsewhere, tables are
    printed one below the other: at once if a state or a success rate changes, and otherwise at most
    every `PLAIN_INTERVAL_S` seconds if anything changes.

    Raises:
        UserError, OSError: the first read fails. Later, the reason is shown.
    """
    snapshot: Snapshot | None = None
    is_screen = console.is_terminal and not console.is_dumb_terminal
    try:
        snapshot = read()
        if is_screen:
            with _without_log(), Live(console=console, screen=True, auto_refresh=False) as live:
                started = time.thread_time()
                while True:
                    live.update(TerminalView(snapshot, fit_height=True), refresh=True)
                    _pause(started)
                    started = time.thread_time()
                    snapshot = _read_again(read, snapshot)
        else:
            _print_changes(read, snapshot, console)
    except KeyboardInterrupt:
        if is_screen and snapshot is not None:
            console.print(TerminalView(snapshot), crop=False)


def _print_changes(read: Read, snapshot: Snapshot, console: Console) -> None:
    printed: Snapshot | None = None
    printed_at = 0.0
    started = time.thread_time()
    while True:
        is_due = time.monotonic() >= printed_at + PLAIN_INTERVAL_S
        is_new = printed is None or _results(snapshot) != _results(printed)
        if is_new or (is_due and printed is not None and _without_times(snapshot) != printed):
            console.print(time_text(snapshot.read_at))
            console.print(TerminalView(snapshot), crop=False)
            printed, printed_at = _without_times(snapshot), time.monotonic()
        _pause(started)
        started = time.thread_time()
        snapshot = _read_again(read, snapshot)


def _pause(started: float) -> None:
    """Wait until the next read.

    Args:
        started: CPU time of this thread in seconds before the last read.
    """
    time.sleep(max(INTERVAL_S, (time.thread_time() - started) / MAX_CPU_FRACTION))


def _read_again(read: Read, snapshot: Snapshot) -> Snapshot:
    """Return the current content or, with the reason, the previous one."""
    try:
        return read()
    except (UserError, OSError) as error:
        note = f"{error} This is the content of {time_text(snapshot.read_at)}."
        return dataclasses.replace(snapshot, notes=[note])


def _results(snapshot: Snapshot) -> list[object]:
    """Return what is printed at once when it changes."""
    return [(row.name, row.state, row.success, row.error) for row in snapshot.rows]


def _without_times(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot without what changes by itself as time goes by."""
    rows = [
        dataclasses.replace(row, last_entry_age_s=None, time_left_s=None) for row in snapshot.rows
    ]
    return dataclasses.replace(snapshot, read_at=0.0, rows=rows)


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep messages about damaged files, which the view shows as notes, off the terminal."""
    level = logging.getLogger("imf_ray").level
    logging.getLogger("imf_ray").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger("imf_ray").setLevel(level)
