"""Keeps the page of one folder up to date while somebody looks at it."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from imf_ray.errors import StorageError, UserError
from imf_ray.pages.model import Snapshot, State
from imf_ray.redaction import redact
from imf_ray.storage import PERMANENT_ERRNOS

READ_INTERVAL_S = 1.0
"""Minimum number of seconds between two reads of a folder."""
MAX_CPU_FRACTION = 0.01
"""Maximum fraction of a core that reading and rendering one page may take.

A page that costs more is read less often, but at least every `MAX_INTERVAL_S`."""
MAX_INTERVAL_S = 15.0
"""Maximum number of seconds between two reads because of their cost."""
AGE_INTERVAL_S = 15.0
"""Seconds after which a page is rendered again although only the ages of its entries changed."""
GZIP_LEVEL = 4
Read = Callable[[], Snapshot]
Render = Callable[[Snapshot], str]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """A rendered page."""

    html: bytes
    gzipped: bytes
    etag: str
    """Hash of `html`."""

    @classmethod
    def from_text(cls, text: str) -> Page:
        """Encode and compress the HTML of a page."""
        html = text.encode()
        etag = hashlib.blake2b(html, digest_size=12).hexdigest()
        return cls(html, gzip.compress(html, GZIP_LEVEL, mtime=0), etag)


class Follower:
    """Reads one folder and renders its page, both only as often as needed.

    A folder that cannot be read does not raise. The page then shows the reason, and what was read
    last. It recovers as soon as the folder can be read again.

    Args:
        path: the folder as the user writes it, without secrets.
        read: returns the current content of the folder; raises `UserError` or `OSError`.
        render: returns the page of a snapshot as HTML.
    """

    def __init__(self, path: str, read: Read, render: Render) -> None:
        self._path, self._read, self._render = path, read, render
        self._snapshot: Snapshot | None = None
        self._shown: Snapshot | None = None
        self._rendered_at = 0.0
        self._next_read = 0.0
        self._logged = ""
        self.page: Page | None = None
        """The newest page; None before the end of the first `refresh`."""
        self.problem: str | None = None
        """The reason why the folder cannot be read; None if it can."""
        self.has_page = True
        """False if the folder could never be read, and not because of a failure of the storage."""

    @property
    def is_due(self) -> bool:
        """True if the folder may be read again."""
        return time.monotonic() >= self._next_read

    def refresh(self) -> None:
        """Read the folder, and render the page if its content changed."""
        started = time.thread_time()
        snapshot = self._current()
        now = time.monotonic()
        content, is_old = _without_ages(snapshot), now > self._rendered_at + AGE_INTERVAL_S
        if self.page is None or content != self._shown or (snapshot.is_active and is_old):
            self.page = Page.from_text(self._render_or_explain(snapshot))
            self._shown, self._rendered_at = content, now
        pause = (time.thread_time() - started) / MAX_CPU_FRACTION
        self._next_read = time.monotonic() + min(max(pause, READ_INTERVAL_S), MAX_INTERVAL_S)

    def placeholder(self, note: str) -> Page:
        """Return a page that shows nothing but the folder's path and a note."""
        return Page.from_text(self._render(empty_snapshot(self._path, note)))

    def _current(self) -> Snapshot:
        """Return the content of the folder or, with the reason, what was read last."""
        try:
            self._snapshot = self._read()
        except (UserError, OSError) as error:
            self.problem = redact(str(error))
            may_pass = (
                error.errno not in PERMANENT_ERRNOS
                if isinstance(error, OSError)
                else isinstance(error, StorageError)
            )
            self.has_page = self._snapshot is not None or may_pass
        except Exception as error:  # whatever is in a file, the board lives on
            self.problem = self._describe(error)
        else:
            self.problem, self.has_page = None, True
            return self._snapshot
        if self._snapshot is None:
            return empty_snapshot(self._path, self.problem)
        read_at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._snapshot.read_at))
        note = f"{self.problem} This page shows what was read at {read_at}."
        return dataclasses.replace(self._snapshot, notes=[note, *self._snapshot.notes])

    def _render_or_explain(self, snapshot: Snapshot) -> str:
        """Return the page of a snapshot; of a note about the error if it cannot be rendered."""
        try:
            return self._render(snapshot)
        except Exception as error:
            return self._render(empty_snapshot(self._path, self._describe(error)))

    def _describe(self, error: Exception) -> str:
        """Log an unexpected error once, and return a sentence about it."""
        problem = redact(f"{self._path} cannot be shown: {type(error).__name__}: {error}.")
        if problem != self._logged:
            log.exception("%s", problem)
            self._logged = problem
        return problem


def empty_snapshot(path: str, note: str) -> Snapshot:
    """Return the content of a page that has nothing to show but a note."""
    return Snapshot(
        kind="storage",
        title=path.rstrip("/").rpartition("/")[2] or path,
        path=path,
        read_at=time.time(),
        state=State.PENDING,
        rows=(),
        notes=[note],
    )


def _without_ages(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot without what changes by itself as time goes by."""
    rows = [dataclasses.replace(row, last_entry_age_s=None) for row in snapshot.rows]
    return dataclasses.replace(snapshot, read_at=0.0, rows=rows)
