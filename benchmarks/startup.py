"""Times the phases of a short training, from the command to the first update and to its end.

    python -m benchmarks.startup --data DIR [--repeats 3] [--python PYTHON] [--checkout DIR]
    python -m benchmarks.startup --data DIR --restart

The smoke line of docs/quickstart.md is run with `train.log_freq=1`, in a new process and a new
storage folder each time. `--checkout` runs another checkout of the package, such as an earlier
commit. Phases are read from the command's output and from the files of the run, 50 times a second.

`--restart` runs more updates, kills the worker after some of them, and times how long it takes
until the next update, and until the run has made up for the updates after its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

POLL_INTERVAL_S = 0.02
RUN = "smoke"
OPTIONS = (
    "agent=resnet_imf_attnres",
    "data.camera_names=[r_vis,top,front]",
    "train.device=cpu",
    "train.max_steps=2",
    "train.batch_size=4",
    "train.num_workers=2",
    "train.use_swanlab=false",
    "train.rollout_val_freq_epochs=0",
    "train.log_freq=1",
    f"run_name={RUN}",
)
LINES = {"Ray:": "Ray has started", "Run:": "the run is set up"}
"""Starts of lines of the output, and the phase that ends with each."""
FILES = {
    "workers/rank_0.json": "the worker runs",
    "metrics.jsonl": "the agent is built",
    "first update": "the first update is done",
    "checkpoint_00000002/manifest.json": "the checkpoint is saved",
}
"""Files of the run, and the phase that ends when each appears."""
KILLED_AT, SAVE_FREQ = 8, 5
"""Updates before the worker is killed, and between two checkpoints."""
FIRST_OUTPUT, END, FINISHED_RUN = "the first output", "the process has ended", "a finished run"


def run_command(
    options: list[str], python: str, checkout: Path | None, run: Path
) -> dict[str, float]:
    """Run the command once; return the time in seconds at the end of each phase."""
    start = time.perf_counter()
    process = _begin(options, python, checkout, run)
    times: dict[str, float] = {}

    def read_output() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            times.setdefault(FIRST_OUTPUT, time.perf_counter() - start)
            for prefix, phase in LINES.items():
                if line.startswith(prefix):
                    times.setdefault(phase, time.perf_counter() - start)

    reader = threading.Thread(target=read_output)
    reader.start()
    while process.poll() is None:
        for name, phase in FILES.items():
            if phase not in times and _exists(run, name):
                times[phase] = time.perf_counter() - start
        time.sleep(POLL_INTERVAL_S)
    times[END] = time.perf_counter() - start
    reader.join()
    if process.returncode != 0:
        raise RuntimeError(f"The command ended with code {process.returncode}.")
    return times


def time_restart(
    options: list[str], python: str, checkout: Path | None, run: Path
) -> dict[str, float]:
    """Kill the worker of a run; return the seconds until updates are made, and made up for."""
    more = [f"train.max_steps={KILLED_AT + 2}", f"train.save_freq={SAVE_FREQ}"]
    process = _begin([*options, *more], python, checkout, run)
    while max(_steps(run), default=0) < KILLED_AT:
        time.sleep(POLL_INTERVAL_S)
    logged, start = len(_steps(run)), time.perf_counter()
    os.kill(json.loads((run / "workers/rank_0.json").read_text())["pid"], signal.SIGKILL)
    times: dict[str, float] = {}
    assert process.stdout is not None
    output = threading.Thread(target=process.stdout.read)  # a full pipe would block the command
    output.start()
    while process.poll() is None:
        new = _steps(run)[logged:]
        if new:
            times.setdefault("the next update", time.perf_counter() - start)
        if new and max(new) > KILLED_AT:
            times.setdefault("a new update", time.perf_counter() - start)
        time.sleep(POLL_INTERVAL_S)
    output.join()
    return times


def _begin(
    options: list[str], python: str, checkout: Path | None, run: Path
) -> subprocess.Popen[str]:
    """Start the training of a checkout, whose output can be read."""
    environment = dict(os.environ)
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)
    return subprocess.Popen(
        [python, "-m", "imf_ray.train", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=run.parent,
    )


def _steps(run: Path) -> list[int]:
    """Return the step of each logged update."""
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["step"] for line in lines if '"loss"' in line]


def _exists(run: Path, name: str) -> bool:
    if name != "first update":
        return (run / name).exists()
    log = run / "metrics.jsonl"
    return log.exists() and '"loss"' in log.read_text()


def main() -> None:
    """Print a table with the median, minimum and maximum time of each phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data set of the transfer task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--restart", action="store_true")
    arguments = parser.parse_args()
    options = [*OPTIONS, f"data.dataset_dir={arguments.data.resolve()}"]
    measured: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            all_options = [*options, f"storage_path={folder}"]
            if arguments.restart:
                run = Path(folder, RUN)
                times = time_restart(all_options, arguments.python, arguments.checkout, run)
                print({phase: round(value, 1) for phase, value in times.items()}, flush=True)
                continue
            times = run_command(
                all_options, arguments.python, arguments.checkout, Path(folder, RUN)
            )
            again = run_command(
                all_options, arguments.python, arguments.checkout, Path(folder, RUN)
            )
        measured.append({**times, FINISHED_RUN: again[END]})
        print({phase: round(value, 1) for phase, value in measured[-1].items()}, flush=True)
    if arguments.restart:
        return
    print("| until | median s | min | max |\n|---|---|---|---|")
    for phase in [FIRST_OUTPUT, *LINES.values(), *FILES.values(), END, FINISHED_RUN]:
        values = [times[phase] for times in measured if phase in times]
        print(
            f"| {phase} | {statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f} |"
        )


if __name__ == "__main__":
    main()
