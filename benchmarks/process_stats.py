"""CPU time and memory of a process and its descendants, measured from outside."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import psutil


def process_tree(root: int) -> list[psutil.Process]:
    """Return a process and its running descendants."""
    try:
        parent = psutil.Process(root)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_times(root: int) -> dict[int, float]:
    """Return CPU seconds of a process and its running descendants, by process id.

    Call it repeatedly and keep the last value of each id: ended processes are not included.
    """
    seconds = {}
    for process in process_tree(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[process.pid] = times.user + times.system
    return seconds


def proportional_bytes(root: int) -> int:
    """Return the summed proportional set size of a process and its descendants."""
    total = 0
    for process in process_tree(root):
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants."""
    for member in process_tree(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
