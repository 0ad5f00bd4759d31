"""What was measured, and of which commit.

A long benchmark writes a line a case, so that it goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

Case = TypeVar("Case")
Measured = TypeVar("Measured")


def commit() -> str:
    """The commit that a figure comes from; `-dirty` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    root = Path(__file__).parents[1]
    return subprocess.check_output(command, text=True, cwd=root).strip()


def read_notes(log: Path, case: type[Case], measured: type[Measured]) -> dict[Case, Measured]:
    """Cases of this commit and what was seen of them, both dataclasses, in the order of doing."""
    found, here = {}, commit()
    for line in log.read_text().splitlines() if log.exists() else ():
        entry = json.loads(line)
        if entry["commit"] == here:  # figures of two commits are not for one table
            found[case(**entry["case"])] = measured(**entry["measured"])
    return found


def note(log: Path, case: Any, measured: Any) -> None:
    """Add a case, with the commit and the load of the machine after it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    entry = {"case": asdict(case), "measured": asdict(measured)}
    entry |= {"commit": commit(), "load": os.getloadavg()[0]}
    with log.open("a") as file:
        file.write(json.dumps(entry) + "\n")
