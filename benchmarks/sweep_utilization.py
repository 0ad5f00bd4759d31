"""How well a sweep fills a machine: four trials with two simulators each, on two CPUs.

    python -m benchmarks.sweep_utilization --work runs/packing data.dataset_dir=data/demo

Runs `imf_ray.tune search_space=quickstart` as a user types it, with every checkpoint validated
beside the training, under a time limit, and watches the CPU time of all its processes. The ideal
packing is that CPU time spread evenly over the CPUs: no schedule of the same work is faster.
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

from benchmarks.result_log import commit
from benchmarks.process_stats import cpu_times, stop
from imf_ray.files import write_atomically
from imf_ray.rollout.records import describe_success
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.training.run_dir import RunDir

CPUS, ACTORS = 2, 2
POLL_S, LIMIT_S = 0.5, 3600.0
NAME = "packing"
COMMON = (
    "search_space=quickstart",
    "train.rollout_validate_on_checkpoint=true",
    f"cluster.num_cpus={CPUS}",
    f"cluster.num_rollout_actors={ACTORS}",
    f"run_name={NAME}",
)


def watch(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command and all it starts.

    Raises:
        RuntimeError: it failed, or has not ended after `LIMIT_S`.
    """
    seen: dict[int, float] = {}
    begun = time.monotonic()
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            seen |= cpu_times(process.pid)
            if time.monotonic() - begun > LIMIT_S:
                raise RuntimeError(f"The sweep has not ended after {LIMIT_S:.0f} s.")
            time.sleep(POLL_S)
    finally:
        stop(process)
    if process.returncode:
        raise RuntimeError(f"The sweep ended with exit code {process.returncode}.")
    return time.monotonic() - begun, sum(seen.values())


def page(sweep_dir: Path, wall_s: float, cpu_s: float, load: float, how: str) -> str:
    """The result as Markdown."""
    results = SweepDir(sweep_dir).read_results()
    assert results is not None
    records, _ = results
    rows = []
    for record in sorted(records, key=lambda record: record.name):
        times = [line["time"] for line in RunDir(Path(record.run_dir)).read_metrics()]
        span = f"{times[-1] - times[0]:.0f}" if times else "never began"
        judged = describe_success(record.metrics) or "not judged"
        rows.append(f"| {record.name} | {record.status} | {span} | {judged} |")
    ideal_s = cpu_s / CPUS
    trials = "\n".join(rows)
    return f"""# How well a sweep fills a machine

{how}

| | |
|---|---|
| wall time | {wall_s:.0f} s |
| CPU time of all processes, from starting Ray to the table | {cpu_s:.0f} s |
| ideal packing, CPU time / {CPUS} | {ideal_s:.0f} s |
| **wall time / ideal packing** | **{wall_s / ideal_s:.2f}** |
| load average of the machine before | {load:.2f} |

| trial | ended as | s from its first line of metrics to its last | success of its best checkpoint |
|---|---|---|---|
{trials}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="default: a new folder in the system's for these")
    parser.add_argument("--page", type=Path, help="write the report there, too")
    parser.add_argument("options", nargs="*", metavar="key=value", help="for the sweep")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="packing"))).absolute()
    options = [*COMMON, *arguments.options, f"storage_path={work}"]
    load = os.getloadavg()[0]
    wall_s, cpu_s = watch([sys.executable, "-m", "imf_ray.tune", *options])
    shown = [o for o in arguments.options if not o.startswith("data.dataset_dir=")]
    how = (
        f"`python -m benchmarks.sweep_utilization {' '.join(shown)}`: `search_space=quickstart` (4 trials), "
        f"{ACTORS} simulators a trial, {CPUS} CPUs, every checkpoint validated beside training. "
        f"Commit {commit()}; torch {torch.__version__}, ray {ray.__version__}."
    )
    report = page(work / NAME, wall_s, cpu_s, load, how)
    print(report)
    if arguments.page is not None:
        write_atomically(arguments.page, report)


if __name__ == "__main__":
    main()
