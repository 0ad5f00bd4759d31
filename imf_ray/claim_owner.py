"""The owner of a claim: the process that writes to a folder, and what shows if it is alive."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

OUTDATED_AFTER_S = 600.0
"""Age in seconds, by the clocks of both machines, from which a claim is not watched for changes."""
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """The process that writes to a folder, as stored in its claim."""

    token: str
    """Identifies the claim."""
    host: str
    user: str
    pid: int
    start_time: int | None
    """Start of the process in clock ticks since the machine started; None if unknown."""
    machine: str
    """Identifies the machine until it is restarted; equal in all of its containers."""
    pid_namespace: str
    """Identifies the processes that `pid` is unique among."""
    lock_device: int | None
    """Device of the locked claim; None without a lock."""
    since: float
    """Time of the claim in seconds since 1970."""
    alive_at: float
    """Time of the last change, by the owner's clock, in seconds since 1970."""
    folder: str = ""
    """The folder that the process writes to, as a path or URL; empty in earlier versions."""

    @classmethod
    def this_process(cls, lock_device: int | None, folder: str) -> Owner:
        """Return the owner of a new claim of a folder."""
        now = time.time()
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            user=_user(),
            pid=os.getpid(),
            start_time=_start_time(os.getpid()),
            machine=_machine(),
            pid_namespace=_pid_namespace(),
            lock_device=lock_device,
            since=now,
            alive_at=now,
            folder=folder,
        )

    @classmethod
    def parse(cls, text: str | None) -> Owner | None:
        """Return the owner that a claim names; None if there is no claim or it is damaged."""
        try:
            owner = cls(**json.loads(text or ""))
            str(owner), time.time() - owner.alive_at  # fields of other types raise an error
        except (ValueError, TypeError, OverflowError, OSError, RecursionError):
            return None
        return owner

    def is_of_this_machine(self) -> bool:
        """Return True if the owner runs on this machine, or ran since it was started."""
        return self.machine == _machine()

    def is_alive(self, lock_device: int | None) -> bool | None:
        """Return True if the process is alive, False if it is dead, None if only time can tell.

        Args:
            lock_device: device of the claim if this process has its lock, else None.
        """
        if self.is_of_this_machine():
            if lock_device is not None and self.lock_device == lock_device:
                return False  # a living owner would have the lock
            if self.pid_namespace == _pid_namespace() and self.start_time is not None:
                return _start_time(self.pid) == self.start_time
        return False if time.time() - self.alive_at > OUTDATED_AFTER_S else None

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self.since))
        return f"process {int(self.pid)} of {self.user} on {self.host} has written since {since}"


def _machine() -> str:
    """Return an id of this machine that changes when it is restarted."""
    try:
        return BOOT_ID_FILE.read_text().strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot; None if it has ended or unknown."""
    try:
        _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    state, *others = fields.split()
    return None if state in "ZX" else int(others[18])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for the user
        return f"user {os.getuid()}"
