"""CPU time, latency and memory of `imf-ray board`, on generated folders.

    python -m benchmarks.board --work runs/board

It measures, each with a board in a process of its own:

* `running`: the share of a core that the board takes while one page is open and the logs of 16
  running trials grow. Every trial writes a line of its log every `--line-s` seconds. The viewer
  requests the page every two seconds, as a browser does.
* `sweep` and `runs`: the seconds from the command to the first complete page of a sweep with
  `--rows` ended trials, or of as many single runs; seconds of a later request; memory.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.result_log import commit
from testing_support.generated_runs import MIXED, GeneratedRun, generate_sweep

NUM_RUNNING = 16
REQUEST_S = 2.0
"""Seconds between two requests of an open page, as in `imf_ray/pages/static/page.js`."""
WARM_UP_S = 10.0
"""Seconds after the first page in which CPU time is not counted."""
NUM_REQUESTS = 20
"""Number of later requests of which the median time is reported."""
MIB = 2**20


@dataclass
class Board:
    """A running board, and the browser tab of one viewer."""

    process: psutil.Process
    address: str
    etag: str = ""

    def request(self) -> tuple[int, bytes]:
        """Request the page as a browser does that has an earlier version; return status and body.

        The body is compressed.
        """
        url = urlsplit(self.address)
        connection = http.client.HTTPConnection(url.netloc, timeout=120)
        headers = {"Accept-Encoding": "gzip"} | ({"If-None-Match": self.etag} if self.etag else {})
        connection.request("GET", url.path, headers=headers)
        response = connection.getresponse()
        self.etag = response.headers["ETag"]
        return response.status, response.read()

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the board so far."""
        times = self.process.cpu_times()
        return times.user + times.system

    @property
    def peak_bytes(self) -> int:
        """Largest resident memory of the board so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@contextmanager
def board(folder: Path) -> Iterator[Board]:
    """Run `imf-ray board` for a folder while the `with` block runs."""
    command = [sys.executable, "-m", "imf_ray", "board", str(folder), "board.port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2]
        try:
            yield Board(psutil.Process(process.pid), address)
        finally:
            process.terminate()


def measure_running(work: Path, line_s: float, seconds: float) -> dict[str, float]:
    """Return the share of a core that the board takes while the logs of running trials grow."""
    folder = work / "running"
    shutil.rmtree(folder, ignore_errors=True)
    trials = generate_sweep(folder, NUM_RUNNING, num_lines=100)
    stop = threading.Event()

    def write_logs() -> None:
        number = 0
        while not stop.wait(line_s / len(trials)):
            trials[number % len(trials)].add_lines(1)
            number += 1

    threading.Thread(target=write_logs, daemon=True).start()
    with board(folder) as running:
        running.request()
        time.sleep(WARM_UP_S)
        cpu_s, started_at, num_pages = running.cpu_s, time.monotonic(), 0
        while time.monotonic() < started_at + seconds:
            num_pages += running.request()[0] == 200
            time.sleep(REQUEST_S)
        elapsed_s = time.monotonic() - started_at
        core_fraction = (running.cpu_s - cpu_s) / elapsed_s
        memory = running.peak_bytes / MIB
    stop.set()
    return {
        "core_percent": 100 * core_fraction,
        "seconds": elapsed_s,
        "new_page_every_s": elapsed_s / max(1, num_pages),
        "peak_mib": memory,
    }


def measure_start(folder: Path, rows: int) -> dict[str, float]:
    """Return the times until the first complete page and of later ones, and the memory."""
    started_at = time.monotonic()
    with board(folder) as started:
        listening_s = time.monotonic() - started_at
        status, body = started.request()
        first_page_s = time.monotonic() - started_at
        assert status == 200
        cpu_s = started.cpu_s
        assert count_rows(body) == rows, "the first page is not complete"
        times = []
        for _ in range(NUM_REQUESTS):
            request_at = time.monotonic()
            started.request()
            times.append(time.monotonic() - request_at)
            time.sleep(0.5)
        return {
            "rows": rows,
            "listening_s": listening_s,
            "first_page_s": first_page_s,
            "first_page_cpu_s": cpu_s,
            "later_median_s": statistics.median(times),
            "later_max_s": max(times),
            "page_mb": len(body) / 1e6,
            "peak_mib": started.peak_bytes / MIB,
        }


def count_rows(page: bytes) -> int:
    """Return the number of rows in the table of a compressed page, without baselines."""
    table = gzip.decompress(page).decode().partition('id="results-table"')[2]
    rows = table.partition("</table>")[0]
    return rows.count("<tr data-r=") - rows.count(' class="reference">')


def generate_runs(storage: Path, num_runs: int, num_lines: int) -> None:
    """Write single runs."""
    for number in range(num_runs):
        run = GeneratedRun(storage / f"run_{number:04d}", {"train.seed": number}, number)
        run.add_lines(num_lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for generated runs")
    parser.add_argument("--only", choices=("running", "sweep", "runs"), nargs="+")
    parser.add_argument("--line-s", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=100, help="lines in the log of each trial")
    arguments = parser.parse_args()
    rows, lines = arguments.rows, arguments.lines

    def sweep() -> dict[str, float]:
        folder = arguments.work / f"sweep_{rows}_{lines}"
        if not folder.exists():
            generate_sweep(folder, rows, lines, MIXED)
        return measure_start(folder, rows)

    def runs() -> dict[str, float]:
        folder = arguments.work / f"runs_{rows}_{lines}"
        if not folder.exists():
            generate_runs(folder, rows, lines)
        return measure_start(folder, rows)

    cases: dict[str, Callable[[], dict[str, float]]] = {
        "running": lambda: measure_running(arguments.work, arguments.line_s, arguments.seconds),
        "sweep": sweep,
        "runs": runs,
    }
    for case in arguments.only or cases:
        measured = {key: round(value, 3) for key, value in cases[case]().items()}
        load = round(os.getloadavg()[0], 1)
        print(json.dumps({"case": case, **measured, "commit": commit(), "load": load}), flush=True)


if __name__ == "__main__":
    main()
