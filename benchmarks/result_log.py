"""Log of measurements: one JSON line per case, with the commit that was measured.

A long benchmark writes a line after each case, so that it can resume after an interruption.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

Case = TypeVar("Case")
Result = TypeVar("Result")


def commit() -> str:
    """Return the current commit, with `-dirty` appended if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    root = Path(__file__).parents[1]
    return subprocess.check_output(command, text=True, cwd=root).strip()


def read_results(log: Path, case_type: type[Case], result_type: type[Result]) -> dict[Case, Result]:
    """Read the results of the current commit by case, in the order of measurement.

    Both types are dataclasses.
    """
    results, current = {}, commit()
    for line in log.read_text().splitlines() if log.exists() else ():
        entry = json.loads(line)
        if entry["commit"] == current:  # results of two commits do not belong in one table
            results[case_type(**entry["case"])] = result_type(**entry["measured"])
    return results


def append_result(log: Path, case: Any, result: Any) -> None:
    """Append a case and its result, with the commit and the machine's load average."""
    log.parent.mkdir(parents=True, exist_ok=True)
    entry = {"case": asdict(case), "measured": asdict(result)}
    entry |= {"commit": commit(), "load": os.getloadavg()[0]}
    with log.open("a") as file:
        file.write(json.dumps(entry) + "\n")
