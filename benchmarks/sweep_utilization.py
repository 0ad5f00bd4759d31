"""CPU utilization of a sweep: four trials with two rollout actors each, on two CPUs.

    python -m benchmarks.sweep_utilization --work runs/sweep_utilization data.dataset_dir=data/demo

Runs `imf_ray.tune search_space=quickstart` as a user does, with every checkpoint validated during
training, under a time limit, and measures the CPU time of all its processes. The ideal wall time is
that CPU time spread evenly over the CPUs: no schedule of the same work is faster.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch

from benchmarks.process_stats import cpu_times, kill_tree
from benchmarks.result_log import commit
from imf_ray.files import write_atomically
from imf_ray.rollout.records import describe_success
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.training.run_dir import RunDir

CPUS, ACTORS = 2, 2
POLL_S, LIMIT_S = 0.5, 3600.0
NAME = "sweep_utilization"
COMMON = (
    "search_space=quickstart",
    "train.rollout_validate_on_checkpoint=true",
    f"cluster.num_cpus={CPUS}",
    f"cluster.num_rollout_actors={ACTORS}",
    f"run_name={NAME}",
)


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command; return wall seconds, and CPU seconds of it and its descendants.

    Raises:
        RuntimeError: it failed, or ran longer than `LIMIT_S`.
    """
    cpu_seconds: dict[int, float] = {}
    start = time.monotonic()
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            cpu_seconds |= cpu_times(process.pid)
            if time.monotonic() - start > LIMIT_S:
                raise RuntimeError(f"The sweep has not ended after {LIMIT_S:.0f} s.")
            time.sleep(POLL_S)
    finally:
        kill_tree(process)
    if process.returncode:
        raise RuntimeError(f"The sweep ended with exit code {process.returncode}.")
    return time.monotonic() - start, sum(cpu_seconds.values())


def page(sweep_dir: Path, wall_s: float, cpu_s: float, load: float, description: str) -> str:
    """Format the result as Markdown."""
    results = SweepDir(sweep_dir).read_results()
    assert results is not None
    records, _ = results
    rows = []
    for record in sorted(records, key=lambda record: record.name):
        times = [line["time"] for line in RunDir(Path(record.run_dir)).read_metrics()]
        span = f"{times[-1] - times[0]:.0f}" if times else "not started"
        success = describe_success(record.metrics) or "not validated"
        rows.append(f"| {record.name} | {record.status} | {span} | {success} |")
    ideal_s = cpu_s / CPUS
    trials = "\n".join(rows)
    return f"""# CPU utilization of a sweep

{description}

| | |
|---|---|
| wall time | {wall_s:.0f} s |
| CPU time of all processes, from the start of Ray to the table | {cpu_s:.0f} s |
| ideal wall time, CPU time / {CPUS} | {ideal_s:.0f} s |
| **wall time / ideal wall time** | **{wall_s / ideal_s:.2f}** |
| load average before the sweep | {load:.2f} |

| trial | status | seconds from first to last metrics | success of best checkpoint |
|---|---|---|---|
{trials}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="default: a new temporary folder")
    parser.add_argument("--page", type=Path, help="also write the report to this file")
    parser.add_argument("options", nargs="*", metavar="key=value", help="for the sweep")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="sweep_utilization"))).absolute()
    options = [*COMMON, *arguments.options, f"storage_path={work}"]
    load = os.getloadavg()[0]
    wall_s, cpu_s = measure([sys.executable, "-m", "imf_ray.tune", *options])
    shown = [o for o in arguments.options if not o.startswith("data.dataset_dir=")]
    description = (
        f"`python -m benchmarks.sweep_utilization {' '.join(shown)}`: "
        "`search_space=quickstart` (4 trials), "
        f"{ACTORS} rollout actors per trial, {CPUS} CPUs, every checkpoint validated. "
        f"Commit {commit()}; torch {torch.__version__}, ray {ray.__version__}."
    )
    report = page(work / NAME, wall_s, cpu_s, load, description)
    print(report)
    if arguments.page is not None:
        write_atomically(arguments.page, report)


if __name__ == "__main__":
    main()
