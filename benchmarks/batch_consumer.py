"""Consumes the batches of a loader under test, with the standard library only.

A loader is a process that makes batches and passes them to `consume`. `benchmarks.data` measures it
from outside, between two files that mark the start and the end of the measurement.
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
"""Environment steps of a window, relative to the step of its newest observation."""
WARM_UP_S = 10.0
READ_BYTES = 1 << 23
BEGIN, END = "begin", "end.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all loaders have."""
    parser.add_argument("--folder", type=Path, required=True, help="for the begin and end files")
    parser.add_argument("--workers", type=int, default=1, help="parallel readers")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the measurement")
    parser.add_argument("--step-s", type=float, default=0.0, help="sleep after each batch")


def loader_options(workers: int) -> dict[str, Any]:
    """Return the arguments of every torch DataLoader under test."""
    options = {"batch_size": BATCH, "shuffle": True, "drop_last": True}
    return {**options, "num_workers": workers, "persistent_workers": workers > 0}


def consume(
    batches: Iterable[dict[str, Any]],
    files: Iterable[Path],
    folder: Path,
    seconds: float,
    step_s: float,
) -> None:
    """Take batches for some seconds after a warm-up, and write the number of windows.

    Args:
        batches: endless; `action` of each has a row for each window.
        files: read through before the warm-up. All loaders then find them in the system's cache,
            and the speed of the disk is not measured.
        folder: for the files that mark the start and the end.
        seconds: length of the measurement.
        step_s: sleep after each batch, in place of a training step on an accelerator.
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
