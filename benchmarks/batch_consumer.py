"""What every contender of `benchmarks.data` does with its batches; needs the standard library only.

A contender is a process that makes batches and passes them to `consume`. The benchmark watches it
from outside, between the two files that say when measuring begins and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BATCH = 32
OBSERVED_STEPS, ACTION_STEPS = range(-1, 1), range(-1, 15)
"""What a window holds, by its distance from the window's step."""
WARM_UP_S = 10.0
READ_BYTES = 1 << 23
BEGIN, END = "begin", "end.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all contenders have."""
    parser.add_argument("--folder", type=Path, required=True, help="where begin and end are told")
    parser.add_argument("--workers", type=int, default=1, help="parallel readers")
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure for")
    parser.add_argument("--step-s", type=float, default=0.0, help="sleep after each batch")


def loader_options(workers: int) -> dict[str, Any]:
    """What every contender asks of a torch DataLoader."""
    options = {"batch_size": BATCH, "shuffle": True, "drop_last": True}
    return {**options, "num_workers": workers, "persistent_workers": workers > 0}


def consume(
    batches: Iterable[dict[str, Any]],
    files: Iterable[Path],
    folder: Path,
    seconds: float,
    step_s: float,
) -> None:
    """Take batches for some seconds after a warm-up, and say how many windows came.

    Args:
        batches: endless; `action` of each has a row for each window.
        files: read through before, so that all contenders find them in the system's cache and no
            disk is compared with it.
        step_s: slept after each batch, as a training step on an accelerator would take.
    """
    stream = iter(batches)
    next(stream)  # the readers have started
    _read_through(files)
    _take(stream, WARM_UP_S, step_s)
    (folder / BEGIN).touch()
    result = _take(stream, seconds, step_s)
    partial = folder / f"{END}.partial"
    partial.write_text(json.dumps(result))
    os.replace(partial, folder / END)


def _read_through(files: Iterable[Path]) -> None:
    inodes = {path.stat().st_ino: path for path in files}  # some are links to others
    for path in inodes.values():
        with path.open("rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass


def _take(stream: Iterator[dict[str, Any]], seconds: float, step_s: float) -> dict[str, float]:
    start, windows = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        windows += len(next(stream)["action"])
        time.sleep(step_s)
    return {"windows": windows, "seconds": elapsed}
