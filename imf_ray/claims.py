"""Claims: only one process at a time writes to the folder of a run, sweep, data set or evaluation.

The writer keeps a file `.claim` in the folder, which says who it is, and deletes the file at the
end. If the file of an earlier writer is still there, one of these shows whether that writer is
alive:

* The lock of the file (`flock`). The system frees it when a process ends, in any way. It decides on
  one machine, and between machines whose shared file system has locks.
* The process id and start time, on the same machine if there is no lock, as under a URL.
* The content, which a living writer changes every `HEARTBEAT_S`. It decides between machines
  without a common lock. Clocks of different machines need not agree.

A claim may be copied together with its folder. It names the folder that its owner writes to. If
that is another one, whose claim changes while the copy does not, the copy excludes nobody.

A file system without exclusive creation, such as an object store, cannot exclude two writers that
start at the same time. There, a new writer reads its claim back, and the later one remains.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imf_ray.claim_owner import Owner
from imf_ray.errors import StorageError, UserError
from imf_ray.storage import (
    DISK_FULL_ERRNOS,
    delete,
    display_path,
    parse_path,
    put_file,
    read_text_or_none,
    remote_path,
    storage_errors,
)

CLAIM_FILE = ".claim"
HEARTBEAT_S = 5.0
"""Seconds between two changes of a claim by its owner."""
DEAD_AFTER_S = 60.0
"""Seconds without a change after which the owner of a claim counts as dead."""
DAMAGED_AFTER_S = 3 * HEARTBEAT_S
"""Seconds without a change after which a claim that cannot be read counts as nobody's."""
BUSY_WAIT_S = 1.0
"""Seconds to wait for a lock, because another process may hold it only to read the claim."""
READ_BACK_S = 2.0
"""Seconds after which a claim is read back where two processes may have written it."""
POLL_S = 0.2
"""Seconds between two attempts to lock a claim, and between two looks for a change."""
log = logging.getLogger(__name__)


class ClaimedError(UserError):
    """Another process writes to the folder."""


@contextmanager
def claim(folder: Path, way_out: str) -> Iterator[None]:
    """Exclude other writers from a folder while the `with` block runs.

    The folder is created, and deleted at the end if it is still empty. If another process takes
    the claim over because this one was not seen alive for long, this one is interrupted (SIGINT).

    Args:
        folder: a local folder or the local copy of a URL.
        way_out: what the user can do instead of waiting, such as "choose another run_name".

    Raises:
        ClaimedError: another process writes to the folder.
        StorageError: the claim cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    held = _Claim(folder, way_out)
    try:
        held.take()
        yield
    finally:
        held.release()
        with suppress(OSError):  # not empty, or another process has deleted it
            for path in missing:
                path.rmdir()


def require_unclaimed(folder: Path, way_out: str) -> None:
    """Check that no process writes to a folder.

    Raises:
        ClaimedError: a process writes to it.
        StorageError: the claim cannot be read.
    """
    _Claim(folder, way_out).require_free()


@dataclass
class _Lock:
    """An open claim file in a local folder, which no other process on this machine has locked."""

    path: Path
    fd: int
    is_new: bool
    """True if this process created the file."""
    is_writable: bool
    """False if the file belongs to another user."""
    device: int | None
    """Device of the file; None if its file system has no locks."""

    @classmethod
    def acquire(cls, path: Path) -> _Lock | None:
        """Create or open a claim file and lock it; return None if other processes keep it.

        Raises:
            UserError: something else has the path of the claim.
            StorageError: the claim cannot be opened.
        """
        deadline = time.monotonic() + BUSY_WAIT_S
        while True:
            _refuse_obstacles(path)
            lock = cls._open(path)
            if lock is not None:
                if lock._try_lock() and lock._is_current():
                    _locks.add(lock)
                    return lock
                lock.close()
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_S)

    @classmethod
    def _open(cls, path: Path) -> _Lock | None:
        """Create or open a claim file; return None if another process deletes it meanwhile."""
        with storage_errors(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = is_writable = True
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            except FileNotFoundError:
                return None
            except FileExistsError:
                is_new = False
                try:
                    fd = os.open(path, os.O_RDWR)
                except FileNotFoundError:
                    return None
                except PermissionError:
                    is_writable = False
                    fd = os.open(path, os.O_RDONLY)
            return cls(path, fd, is_new, is_writable, os.fstat(fd).st_dev)

    def _try_lock(self) -> bool:
        """Lock the file; return False if another process has locked it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            self.device = None
        return True

    def _is_current(self) -> bool:
        """Return True if the path still names this file; the previous owner may have deleted it."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def age(self) -> float:
        """Return the seconds since the last change of the file, by the clocks of both machines."""
        return time.time() - os.fstat(self.fd).st_mtime

    def write(self, text: str) -> None:
        """Replace the content of the file."""
        content = text.encode()
        os.pwrite(self.fd, content, 0)
        os.ftruncate(self.fd, len(content))
        os.fsync(self.fd)

    def close(self) -> None:
        """Free the lock."""
        _locks.discard(self)
        os.close(self.fd)

    __hash__ = object.__hash__


def _refuse_obstacles(path: Path) -> None:
    """Raise a `UserError` if something else than a claim or a folder is at or above its path."""
    for part in (path, *path.parents):
        try:
            mode, is_folder = part.lstat().st_mode, part.is_dir()
        except OSError:  # missing; or opening the claim says why it cannot be read
            continue
        kind = "a file" if stat.S_ISREG(mode) else "no regular file"
        if stat.S_ISLNK(mode):
            end = "" if os.path.exists(part) else ", which does not exist"
            kind = f"a link to {os.readlink(part)}{end}"
        if part == path:
            if not stat.S_ISREG(mode):
                raise UserError(f"{path} is {kind}, but only imf-ray writes this file. Delete it.")
        elif not (stat.S_ISDIR(mode) or is_folder):
            needed = "" if part == path.parent else f", so {path.parent} cannot be created"
            raise UserError(
                f"{part} is {kind}, but must be a folder{needed}. Remove it, or choose another "
                "folder."
            )
        else:
            return


_locks: set[_Lock] = set()
"""The locks of this process."""


def _close_inherited_locks() -> None:
    """Close the locks in a forked child. Otherwise they would outlive the parent."""
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_close_inherited_locks)


class _Claim:
    """The claim of one folder."""

    def __init__(self, folder: Path, way_out: str) -> None:
        self._folder, self._way_out = folder, way_out
        self._file = folder / CLAIM_FILE
        self._remote = remote_path(self._file)
        self._lock: _Lock | None = None
        self._owner: Owner | None = None
        self._pid = os.getpid()
        self._released = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def require_free(self) -> None:
        """Raise a `ClaimedError` if another process writes to the folder."""
        _refuse_obstacles(self._file)
        if self._read() is not None:
            lock, _ = self._acquire_lock()
            if lock.is_new:  # of the local copy of a URL, or deleted meanwhile
                lock.path.unlink()
            lock.close()

    def take(self) -> None:
        """Take the claim and start the heartbeat, or raise a `ClaimedError`."""
        self._lock, was_watched = self._acquire_lock()
        device = self._device_of(self._lock)
        self._write(Owner.this_process(device, display_path(self._folder.absolute())))
        if was_watched or device is None:
            time.sleep(READ_BACK_S)
            if self._is_lost():
                raise self._error(Owner.parse(self._read()))
        self._heartbeat = threading.Thread(target=self._beat, daemon=True)
        self._heartbeat.start()

    def release(self) -> None:
        """Delete the claim if this process has it. Does nothing in a forked child."""
        if self._lock is None or os.getpid() != self._pid:
            return
        self._released.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
        try:
            if not self._is_lost():
                delete(self._file)
        except StorageError as error:
            log.warning("The claim stays, and will be recognized as outdated: %s", error)
        self._lock.close()

    def _acquire_lock(self) -> tuple[_Lock, bool]:
        """Lock the claim if no other process writes to the folder.

        Returns:
            The lock, and True if the previous owner had to be watched.

        Raises:
            ClaimedError: another process writes to the folder.
        """
        dead: str | None = None
        while True:
            lock = self._open_lock()
            if lock is None:
                raise self._error(Owner.parse(read_text_or_none(self._file)))
            text = self._read()
            owner = Owner.parse(text)
            device = self._device_of(lock)
            if owner is not None:
                is_alive = owner.is_alive(device)
            else:  # a living owner would have the lock, or have repaired the claim
                is_alive = False if device is not None and lock.age() > DEAD_AFTER_S else None
            if owner is not None and is_alive is not False and self._is_copy(text, owner):
                is_alive = False
            is_created = lock.is_new and self._remote is None
            if text is None or is_created or text == dead or is_alive is False:
                if lock.is_writable:
                    return lock, dead is not None
                with storage_errors(self._file, "deleted"):
                    lock.path.unlink(missing_ok=True)
                lock.close()
                continue
            lock.close()
            if is_alive or self._changes(text, owner):
                raise self._error(owner)
            dead = text

    def _open_lock(self) -> _Lock | None:
        try:
            return _Lock.acquire(self._file)
        except StorageError as error:
            hint = f"Make the folder writable, or {self._way_out}."
            if self._remote is not None:
                hint = "It is this machine's copy of a URL: set XDG_CACHE_HOME to another folder."
            raise StorageError(f"{error}. {hint}") from error

    def _device_of(self, lock: _Lock) -> int | None:
        """Return the device of a locked claim; None if the lock is of no use to other machines."""
        return lock.device if self._remote is None else None

    def _changes(self, text: str, owner: Owner | None) -> bool:
        """Wait until the owner changes its claim, and return False if it does not."""
        seconds = DAMAGED_AFTER_S if owner is None else DEAD_AFTER_S
        log.warning(
            "%s has the claim of another writer (%s). Waiting up to %.0f s for a sign of life.",
            display_path(self._folder),
            owner or "it cannot be read",
            seconds,
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            current = self._read()
            if current != text:
                return current is not None
        return False

    def _is_copy(self, text: str | None, owner: Owner) -> bool:
        """Return True if the claim was copied from another folder, which its owner writes to.

        The owner's own claim changes every `HEARTBEAT_S`. A copy does not.
        """
        deadline = time.monotonic() + 2 * HEARTBEAT_S
        while (original := self._read_original(owner)) is not None and time.monotonic() < deadline:
            if original != text:
                is_unchanged = self._read() == text  # otherwise both paths lead to the same file
                if is_unchanged:
                    log.info(
                        "%s is a copy of %s, which has a writer (%s). The copy has none.",
                        *(display_path(self._folder), owner.folder, owner),
                    )
                return is_unchanged
            time.sleep(POLL_S)
        return False

    def _read_original(self, owner: Owner) -> str | None:
        """Return the content of the owner's claim in another folder; None if there is none.

        A local folder may have several paths (mounts), but has one inode number.
        """
        if not owner.folder or owner.folder == display_path(self._folder):
            return None
        try:
            file = parse_path(owner.folder) / CLAIM_FILE
            is_local = isinstance(file, Path)
            if is_local and file.stat().st_ino == self._file.stat().st_ino:
                return None
            text = read_text_or_none(file)
        except (OSError, UserError):  # the folder is on another machine
            return None
        original = Owner.parse(text)
        return text if original is not None and original.token == owner.token else None

    def _error(self, owner: Owner | None) -> ClaimedError:
        text = owner or "another process on this machine is writing to it"
        is_elsewhere = owner is not None and not owner.is_of_this_machine()
        dead = f" A process that was killed counts as dead {DEAD_AFTER_S:.0f} s later."
        return ClaimedError(
            f"{display_path(self._folder)} is in use: {text}. Wait until it has ended, or "
            f"{self._way_out}.{dead if is_elsewhere else ''}"
        )

    def _read(self) -> str | None:
        if self._remote is None:
            return read_text_or_none(self._file)
        self._remote.fs.invalidate_cache()  # a cached listing has an old size
        return read_text_or_none(self._remote)

    def _is_lost(self) -> bool:
        """Return True if another process has taken the claim over."""
        owner = Owner.parse(self._read())
        return owner is not None and self._owner is not None and owner.token != self._owner.token

    def _write(self, owner: Owner) -> None:
        assert self._lock is not None
        self._owner = owner
        try:
            self._lock.write(json.dumps(dataclasses.asdict(owner)))
        except OSError as error:
            # A run may start on a full disk and wait. The lock excludes others of this machine.
            if error.errno not in DISK_FULL_ERRNOS or self._lock.device is None:
                raise StorageError(f"{self._file} cannot be written: {error}") from error
        if self._remote is not None:
            with storage_errors(self._remote, "written"):
                put_file(self._file, self._remote)

    def _beat(self) -> None:
        """Change the claim every `HEARTBEAT_S`; interrupt the process if the claim is lost."""
        assert self._owner is not None
        while not self._released.wait(HEARTBEAT_S):
            try:
                if self._is_lost():
                    log.error("%s; this process stops.", self._error(Owner.parse(self._read())))
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._write(dataclasses.replace(self._owner, alive_at=time.time()))
            except StorageError as error:  # others wait for `DEAD_AFTER_S`
                log.debug("The claim was not renewed: %s", error)
