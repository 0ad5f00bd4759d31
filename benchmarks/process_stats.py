"""CPU time and memory of a process and all it started, seen from outside."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import psutil


def family(root: int) -> list[psutil.Process]:
    """A process and all it started that still run."""
    try:
        parent = psutil.Process(root)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_times(root: int) -> dict[int, float]:
    """CPU seconds of a process and of all it started that still run, by process id.

    Take them now and then and keep the last of each: what has ended is not seen any more.
    """
    found = {}
    for process in family(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def proportional_bytes(root: int) -> int:
    """Memory of a process and all it started, pages that some share counted once."""
    total = 0
    for process in family(root):
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started."""
    for member in family(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
