"""A sweep under injected faults, compared with the same sweep without faults.

    python -m benchmarks.chaos --seed 0 --faults 20 --work runs/chaos

Starts two local nodes, collects a few demonstrations, and runs the same sweep twice. During the
second run, faults are injected as training progresses: processes are killed, a node is lost, the
newest checkpoint is corrupted, an episode is truncated, the disk is filled. A driver that ended is
restarted with `resume=auto`. In the end both sweeps must have used the same samples and have
the same weights, and no driver or trial may have ended without a fault that ends it. Filling the
disk requires permission to mount a file system. Without permission that fault is skipped.
"""

# ruff: noqa: E402  (the environment is set before Ray is imported)
from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_ray.env_vars import prepare_environment

prepare_environment(own_cluster=True)

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from benchmarks.chaos_faults import CTRL_C, DRIVER_KILLED, NODE, Faults
from benchmarks.chaos_sweep import POLL_S, SAVE_FREQ, SEEDS, STEPS, Sweep
from benchmarks.result_log import commit
from imf_ray.agents.pretrained import EMA_WEIGHTS_FILE, WEIGHTS_FILE
from imf_ray.checkpoint_dir import checkpoint_step
from imf_ray.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR
from imf_ray.files import read_json_lines, write_atomically
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import RESTARTS
from testing_support.configs import TINY_AGENT

ROLLOUT_STEPS = 60
"""Environment steps per validation episode. Whole episodes would take longer than training."""
DISK_BYTES = 256 * 2**20
RANKS = 2
LAST_FAULT = 0.9
"""Fraction of the training after which no fault is injected."""
SETTLE_S = 60.0
"""Seconds within which all resources must be free at the end."""
STUCK_S = 1800.0
"""Seconds without any change after which a sweep counts as stuck."""
OPTIONS = (
    "agent=resnet_imf_attnres_multitoken",
    *TINY_AGENT,
    "train.batch_size=8",
    f"train.max_steps={STEPS}",
    f"train.save_freq={SAVE_FREQ}",
    "train.warmup_steps=1",
    "train.log_freq=1",
    "train.num_workers=1",
    "train.log_sample_ids=true",
    "train.max_failures=10",
    "train.rollout_num_episodes=2",
    "train.rollout_validate_on_checkpoint=true",
    "train.val_split=0.0",
    f"cluster.num_workers={RANKS}",
    "agent.vision_backbone.crop_size=40",
    "cluster.num_rollout_actors=1",
    "task.image_size=48",
    "tune.max_concurrent_trials=2",
)


@dataclass(frozen=True)
class Report:
    """Result of the benchmark."""

    page: str
    failures: list[str]
    """Names of the results that miss their requirement."""


def run_sweep(sweep: Sweep, faults: Faults | None, count: int, rng: Any) -> list[dict[str, Any]]:
    """Run a sweep to its end and inject faults; return the faults with their times."""
    kinds = {} if faults is None else faults.kinds()
    waiting = list(itertools.islice(_shuffled_rounds(list(kinds), rng), count)) if kinds else []
    gap = LAST_FAULT * len(SEEDS) * STEPS / (count + 1)
    injected: list[dict[str, Any]] = []
    start = changed = time.monotonic()
    state: Any = None
    due = gap
    sweep.start()
    while True:
        sweep.observe_checkpoints()
        steps = sweep.steps()
        now = steps, len(sweep.commits), len(sweep.codes), _num_validations(sweep)
        if now != state:
            state, changed = now, time.monotonic()
        if time.monotonic() - changed > STUCK_S:
            raise RuntimeError(f"The sweep makes no progress; see {sweep.log}")
        if sweep.driver_ended():
            if sweep.codes[-1] == 0 and sweep.finished():
                return injected
            if faults is None or (sweep.codes[-1] == EXIT_USER_ERROR and not injected):
                raise RuntimeError(f"The sweep failed without a fault; see {sweep.log}")
            sweep.start()
        if waiting and steps >= due:
            # Take the first that is possible now: some need a rollout actor or a checkpoint.
            for kind in dict.fromkeys(waiting):
                description = kinds[kind]()
                if description is None:
                    continue
                waiting.remove(kind)
                event = {"kind": kind, "description": description, "at_s": time.monotonic() - start}
                injected.append(event | {"steps": steps})
                print(f"{event['at_s']:6.0f} s  {kind}: {description}", flush=True)
                # Training must progress between two faults.
                due = max(due + gap, sweep.steps() + gap / 2)
                break
        time.sleep(POLL_S)


def _num_validations(sweep: Sweep) -> int:
    return sum(len(RunDir(trial).read_validations()) for trial in sweep.trials)


def _shuffled_rounds(kinds: list[str], rng: Any) -> Iterator[str]:
    """Yield all kinds in random order, again and again."""
    while True:
        yield from rng.permutation(kinds).tolist()


def lost_steps(sweep: Sweep) -> int:
    """Return the number of updates repeated although a valid checkpoint contained them."""
    lost = 0
    for trial in sweep.trials:
        for start in RunDir(trial).read_metrics():
            if RESTARTS not in start:
                continue
            saved_steps = [
                checkpoint_step(path)
                for path, time_ns in sweep.commits - sweep.broken
                if path.parent == trial and time_ns < 1e9 * start["time"]
            ]
            lost += max(0, max(saved_steps, default=0) - start["step"])
    return lost


def samples_of(trial: Path) -> dict[tuple[str, int], list[list[int]]]:
    """Return the logged sample ids of each update, by (file of the rank, training step).

    An update that was repeated has several lists.
    """
    samples: dict[tuple[str, int], list[list[int]]] = {}
    for path in sorted(trial.glob("samples_rank_*.jsonl")):
        for entry in read_json_lines(path, dict).rows:
            samples.setdefault((path.name, entry["step"]), []).append(entry["samples"])
    return samples


def differences(clean: Sweep, faulty: Sweep) -> dict[str, int]:
    """Count the differences between the sweep without and with faults."""
    counts = Counter({"updates without samples": 0, "updates with other samples": 0})
    counts["checkpoints that differ"] = 0
    for clean_trial, faulty_trial in zip(clean.trials, faulty.trials, strict=True):
        expected, actual = samples_of(clean_trial), samples_of(faulty_trial)
        assert len(expected) == STEPS * RANKS
        counts["updates without samples"] += len(expected.keys() - actual.keys())
        for key, records in actual.items():
            counts["updates with other samples"] += any(r != expected[key][0] for r in records)
        last = f"checkpoint_{STEPS:08d}"
        for name in (WEIGHTS_FILE, EMA_WEIGHTS_FILE):
            a, b = (load_file(trial / last / name) for trial in (clean_trial, faulty_trial))
            same = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
            counts["checkpoints that differ"] += not same
    return dict(counts)


def pauses(trials: Sequence[Path]) -> list[float]:
    """Return the seconds without updates around each restart of a trial's workers."""
    seconds = []
    for trial in trials:
        lines = RunDir(trial).read_metrics()
        for number, line in enumerate(lines):
            before = [entry["time"] for entry in lines[:number] if "loss" in entry]
            after = [entry["time"] for entry in lines[number:] if "loss" in entry]
            if RESTARTS in line and before and after:
                seconds.append(after[0] - before[-1])
    return seconds


def num_skipped_checkpoints(trials: Sequence[Path]) -> int:
    """Return the number of invalid checkpoints that the trials' workers skipped."""
    starts = [[e for e in RunDir(t).read_metrics() if RESTARTS in e] for t in trials]
    return sum(int(lines[-1]["invalid_checkpoints_skipped"]) for lines in starts)


def settle(total: float) -> float:
    """Return the seconds until all CPUs are free and all placement groups removed.

    Infinite if that takes longer than `SETTLE_S`.
    """
    start = time.monotonic()
    while time.monotonic() - start < SETTLE_S:
        are_free = abs(ray.available_resources().get("CPU", 0.0) - total) < 1e-3
        groups = ray.util.placement_group_table().values()
        if are_free and all(group["state"] == "REMOVED" for group in groups):
            return time.monotonic() - start
        time.sleep(POLL_S)
    return float("inf")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small file system in `folder`; yield None if that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--work", type=Path, help="default: a new temporary folder")
    parser.add_argument("--page", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="chaos"))).absolute()
    if work.exists() and any(work.iterdir()):
        parser.error(f"--work {work} is not empty: its sweeps would be resumed")
    with small_disk(work / "disk") as disk:
        try:
            report = run(arguments.seed, arguments.faults, work, disk)
        finally:
            if disk is not None:  # keep logs and records; the disk is unmounted
                ignored = shutil.ignore_patterns("*.pt", "*.safetensors", "tune", "ballast")
                shutil.copytree(disk, work / "records", ignore=ignored)
    print(report.page)
    if arguments.page is not None:
        write_atomically(arguments.page, report.page)
    if report.failures:
        raise SystemExit(f"Failed: {', '.join(report.failures)}")


def run(seed: int, count: int, work: Path, disk: Path | None) -> Report:
    """Run both sweeps and compare them."""
    rng = np.random.default_rng(seed)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": True})
    ray.init(address=cluster.address, log_to_driver=False)
    data, storage = work / "data", disk or work / "disk"
    address = f"cluster.address={cluster.address}"
    python = [sys.executable, "-m"]
    options = [*OPTIONS, address, f"data.dataset_dir={data}"]
    short_episodes = f"task.max_episode_steps={ROLLOUT_STEPS}"
    space = work / "seeds.yaml"
    space.write_text(json.dumps({"grid": {"train.seed": list(SEEDS)}}))
    collect = [*python, "imf_ray.collect", *options, "collect.num_episodes=10"]
    subprocess.run(collect, check=True, stdout=subprocess.DEVNULL)

    def sweep(name: str) -> Sweep:
        own = [f"run_name={name}", f"storage_path={storage}", f"search_space={space}"]
        command = [*python, "imf_ray.tune", *options, short_episodes, *own, "resume=auto"]
        return Sweep(storage / name, command, work / f"{name}.log")

    clean, faulty = sweep("clean"), sweep("faulty")
    faults = Faults(cluster, faulty, data, disk, rng)
    total = ray.cluster_resources()["CPU"]
    start = time.monotonic()
    run_sweep(clean, None, 0, rng)
    clean_s = time.monotonic() - start
    try:
        events = run_sweep(faulty, faults, count, rng)
    finally:
        for started in (clean, faulty):
            if started.driver is not None:
                started.driver.kill()
    faulty_s = time.monotonic() - start - clean_s
    free_s = settle(total)
    walls = {"clean": clean_s, "faulty": faulty_s}
    report = _report(seed, count, events, clean, faulty, walls, free_s)
    write_atomically(work / "report.md", report.page)  # before the shutdown, which may fail
    ray.shutdown()
    cluster.shutdown()
    return report


def unexpected_exits(sweep: Sweep, events: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of drivers that failed without a fault that ends them."""
    injected = Counter(event["kind"] for event in events)
    codes = Counter(sweep.codes)
    killed = min(codes[-signal.SIGKILL], injected[DRIVER_KILLED])
    interrupted = min(codes[EXIT_INTERRUPTED], injected[CTRL_C])
    return codes.total() - codes[0] - killed - interrupted


def _report(
    seed: int,
    count: int,
    events: list[dict[str, Any]],
    clean: Sweep,
    faulty: Sweep,
    walls: dict[str, float],
    free_s: float,
) -> Report:
    kinds = Counter(event["kind"] for event in events)
    starts = sum(RESTARTS in e for t in faulty.trials for e in RunDir(t).read_metrics())
    results = {
        "committed steps lost": lost_steps(faulty),
        **differences(clean, faulty),
        "drivers that ended without a fault": unexpected_exits(faulty, events),
        "failed trials": len(faulty.failures),
        "faults that were not possible": count - len(events),
    }
    waits = pauses(faulty.trials)
    stops = f"{statistics.median(waits):.0f}, {max(waits):.0f}" if waits else "none"
    failures = [name for name, number in results.items() if number]
    if free_s == float("inf"):
        failures.append(f"resources were not free after {SETTLE_S:.0f} s")
    faults = "\n".join(f"| {e['at_s']:.0f} | {e['kind']} | {e['description']} |" for e in events)
    page = f"""# A sweep under injected faults

`python -m benchmarks.chaos --seed {seed} --faults {count}`: {len(SEEDS)} trials of {STEPS} \
updates by {RANKS} workers, two at a time, each checkpoint (every {SAVE_FREQ} updates) validated \
in simulation, on two local nodes with {NODE["num_cpus"]} logical CPUs each; once without faults \
and once with {len(events)} faults of {len(kinds)} kinds. Commit {commit()}; torch \
{torch.__version__}, ray {ray.__version__}.

| result | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in results.items())}
| seconds until all resources were free | {free_s:.1f} |
| drivers started | {len(faulty.codes)} |
| starts of workers (without faults: {len(SEEDS)}) | {starts} |
| seconds without updates around a restart: median, largest | {stops} |
| invalid checkpoints that were skipped | {num_skipped_checkpoints(faulty.trials)} |
| wall time without and with faults | {walls["clean"]:.0f} s, {walls["faulty"]:.0f} s |

| time in s | fault | details |
|---|---|---|
{faults}
{"".join(f"{chr(10)}Failed: {failure}" for failure in sorted(faulty.failures))}"""
    return Report(page, failures)


if __name__ == "__main__":
    main()
