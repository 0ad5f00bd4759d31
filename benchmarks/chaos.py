"""A sweep of small trials while things break around it, against the same sweep left alone.

    python -m benchmarks.chaos --seed 0 --faults 20 --work runs/chaos

Starts two local nodes, collects a few demonstrations, and runs the same sweep twice. Through the
second one, faults strike as training comes along: processes are killed, a node is lost, the newest
checkpoint is corrupted, an episode truncated, the disk filled. A driver that is gone is started
again by `resume=auto`. In the end both sweeps must have seen the same samples and made the same
weights, and no driver or trial may have ended but by a fault that asked for it. Filling the disk
needs the right to mount a file system; without it that fault is left out.
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
from imf_ray.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR
from imf_ray.files import read_lines, write_atomically
from imf_ray.training.checkpoint import checkpoint_step
from imf_ray.training.run_dir import VALIDATIONS_FILE, RunDir
from imf_ray.training.tracking import RESTARTS
from testing_support.configs import TINY_AGENT

ROLLOUT_STEPS = 60
"""Judging whole episodes would take longer than the trainings, and show nothing more."""
DISK_BYTES = 256 * 2**20
RANKS = 2
LAST_FAULT = 0.9
"""Share of the training after which no fault strikes."""
SETTLE_S, STUCK_S = 60.0, 1800.0
"""How long resources may take to be free at the end, and a sweep to show any change."""
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
    """What came of it."""

    page: str
    failings: list[str]


def carry_out(sweep: Sweep, faults: Faults | None, count: int, rng: Any) -> list[dict[str, Any]]:
    """Run a sweep to its end while faults strike; returns them with their times."""
    kinds = {} if faults is None else faults.kinds()
    waiting = list(itertools.islice(_in_turn(list(kinds), rng), count)) if kinds else []
    gap = LAST_FAULT * len(SEEDS) * STEPS / (count + 1)
    struck: list[dict[str, Any]] = []
    begun = changed = time.monotonic()
    state: Any = None
    due = gap
    sweep.start()
    while True:
        sweep.watch()
        steps = sweep.steps()
        now = steps, len(sweep.commits), len(sweep.codes), _judged(sweep)
        if now != state:
            state, changed = now, time.monotonic()
        if time.monotonic() - changed > STUCK_S:
            raise RuntimeError(f"The sweep does not go on; see {sweep.log}")
        if sweep.driver_ended():
            if sweep.codes[-1] == 0 and sweep.ended():
                return struck
            if faults is None or (sweep.codes[-1] == EXIT_USER_ERROR and not struck):
                raise RuntimeError(f"The sweep failed, left alone; see {sweep.log}")
            sweep.start()
        if waiting and steps >= due:
            # The first that is possible now: some need a simulator, or a checkpoint.
            for kind in dict.fromkeys(waiting):
                what = kinds[kind]()
                if what is None:
                    continue
                waiting.remove(kind)
                event = {"kind": kind, "what": what, "at_s": time.monotonic() - begun}
                struck.append(event | {"steps": steps})
                print(f"{event['at_s']:6.0f} s  {kind}: {what}", flush=True)
                # What strikes at once is one fault: training must have come on in between.
                due = max(due + gap, sweep.steps() + gap / 2)
                break
        time.sleep(POLL_S)


def _judged(sweep: Sweep) -> int:
    return sum(len(read_lines(trial / VALIDATIONS_FILE)) for trial in sweep.trials)


def _in_turn(kinds: list[str], rng: Any) -> Iterator[str]:
    """Every kind once in random order, then again."""
    while True:
        yield from rng.permutation(kinds).tolist()


def lost_steps(sweep: Sweep) -> int:
    """Updates that were in a whole checkpoint when workers started, and were made again."""
    lost = 0
    for trial in sweep.trials:
        for start in RunDir(trial).read_metrics():
            if RESTARTS not in start:
                continue
            held = [
                checkpoint_step(found[0])
                for found in sweep.commits - sweep.broken
                if found[0].parent == trial and found[1] < 1e9 * start["time"]
            ]
            lost += max(0, max(held, default=0) - start["step"])
    return lost


def samples_of(trial: Path) -> dict[tuple[str, int], list[list[int]]]:
    """Every record of the samples of an update, by (rank's file, step)."""
    found: dict[tuple[str, int], list[list[int]]] = {}
    for path in sorted(trial.glob("samples_rank_*.jsonl")):
        for line in read_lines(path):
            entry = json.loads(line)
            found.setdefault((path.name, entry["step"]), []).append(entry["samples"])
    return found


def differences(clean: Sweep, other: Sweep) -> dict[str, int]:
    """What the sweep that was struck did differently."""
    found = Counter({"updates without samples": 0, "updates with other samples": 0})
    found["checkpoints that differ"] = 0
    for ours, theirs in zip(clean.trials, other.trials, strict=True):
        expected, seen = samples_of(ours), samples_of(theirs)
        assert len(expected) == STEPS * RANKS
        found["updates without samples"] += len(expected.keys() - seen.keys())
        for key, records in seen.items():
            found["updates with other samples"] += any(r != expected[key][0] for r in records)
        last = f"checkpoint_{STEPS:08d}"
        for name in (WEIGHTS_FILE, EMA_WEIGHTS_FILE):
            a, b = (load_file(trial / last / name) for trial in (ours, theirs))
            same = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
            found["checkpoints that differ"] += not same
    return dict(found)


def pauses(trials: Sequence[Path]) -> list[float]:
    """Seconds from the last update before each restart of a trial's workers to the next one."""
    found = []
    for trial in trials:
        lines = RunDir(trial).read_metrics()
        for number, line in enumerate(lines):
            before = [entry["time"] for entry in lines[:number] if "loss" in entry]
            after = [entry["time"] for entry in lines[number:] if "loss" in entry]
            if RESTARTS in line and before and after:
                found.append(after[0] - before[-1])
    return found


def passed_over(trials: Sequence[Path]) -> int:
    """Bad checkpoints that the trials' workers met with and went on without."""
    starts = [[e for e in RunDir(t).read_metrics() if RESTARTS in e] for t in trials]
    return sum(int(lines[-1]["invalid_checkpoints_skipped"]) for lines in starts)


def settle(total: float) -> float:
    """Seconds until all CPUs are free again and no place is held; infinite if that is not so in
    time."""
    begun = time.monotonic()
    while time.monotonic() - begun < SETTLE_S:
        are_free = abs(ray.available_resources().get("CPU", 0.0) - total) < 1e-3
        places = ray.util.placement_group_table().values()
        if are_free and all(place["state"] == "REMOVED" for place in places):
            return time.monotonic() - begun
        time.sleep(POLL_S)
    return float("inf")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of its own in `folder`; None where that is not allowed."""
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
    parser.add_argument("--work", type=Path, help="default: a new folder in the system's for these")
    parser.add_argument("--page", type=Path, help="write the report there, too")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="chaos"))).absolute()
    if work.exists() and any(work.iterdir()):
        parser.error(f"--work {work} is not empty: its sweeps would be gone on with")
    with small_disk(work / "disk") as disk:
        try:
            report = run(arguments.seed, arguments.faults, work, disk)
        finally:
            if disk is not None:  # what tells of the sweeps, for it goes with the disk
                ignored = shutil.ignore_patterns("*.pt", "*.safetensors", "tune", "ballast")
                shutil.copytree(disk, work / "left", ignore=ignored)
    print(report.page)
    if arguments.page is not None:
        write_atomically(arguments.page, report.page)
    if report.failings:
        raise SystemExit(f"Failed: {', '.join(report.failings)}")


def run(seed: int, count: int, work: Path, disk: Path | None) -> Report:
    """Both sweeps and their comparison."""
    rng = np.random.default_rng(seed)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": True})
    ray.init(address=cluster.address, log_to_driver=False)
    data, storage = work / "data", disk or work / "disk"
    address = f"cluster.address={cluster.address}"
    python = [sys.executable, "-m"]
    options = [*OPTIONS, address, f"data.dataset_dir={data}"]
    short = f"task.max_episode_steps={ROLLOUT_STEPS}"
    space = work / "seeds.yaml"
    space.write_text(json.dumps({"grid": {"train.seed": list(SEEDS)}}))
    collect = [*python, "imf_ray.collect", *options, "collect.num_episodes=10"]
    subprocess.run(collect, check=True, stdout=subprocess.DEVNULL)

    def sweep(name: str) -> Sweep:
        own = [f"run_name={name}", f"storage_path={storage}", f"search_space={space}"]
        command = [*python, "imf_ray.tune", *options, short, *own, "resume=auto"]
        return Sweep(storage / name, command, work / f"{name}.log")

    clean, struck = sweep("clean"), sweep("struck")
    faults = Faults(cluster, struck, data, disk, rng)
    total = ray.cluster_resources()["CPU"]
    begun = time.monotonic()
    carry_out(clean, None, 0, rng)
    alone_s = time.monotonic() - begun
    try:
        events = carry_out(struck, faults, count, rng)
    finally:
        for under_way in (clean, struck):
            if under_way.driver is not None:
                under_way.driver.kill()
    struck_s = time.monotonic() - begun - alone_s
    free_s = settle(total)
    walls = {"alone": alone_s, "struck": struck_s}
    report = _report(seed, count, events, clean, struck, walls, free_s)
    write_atomically(work / "report.md", report.page)  # before anything else can go wrong
    ray.shutdown()
    cluster.shutdown()
    return report


def unasked_ends(sweep: Sweep, events: Sequence[Mapping[str, Any]]) -> int:
    """Drivers that ended otherwise than well, or as their fault would have it."""
    asked = Counter(event["kind"] for event in events)
    codes = Counter(sweep.codes)
    killed = min(codes[-signal.SIGKILL], asked[DRIVER_KILLED])
    interrupted = min(codes[EXIT_INTERRUPTED], asked[CTRL_C])
    return codes.total() - codes[0] - killed - interrupted


def _report(
    seed: int,
    count: int,
    events: list[dict[str, Any]],
    clean: Sweep,
    struck: Sweep,
    walls: dict[str, float],
    free_s: float,
) -> Report:
    kinds = Counter(event["kind"] for event in events)
    starts = sum(RESTARTS in e for t in struck.trials for e in RunDir(t).read_metrics())
    results = {
        "committed steps lost": lost_steps(struck),
        **differences(clean, struck),
        "drivers that ended unasked": unasked_ends(struck, events),
        "trials that ended as failed": len(struck.failures),
        "faults that found no moment to strike": count - len(events),
    }
    waits = pauses(struck.trials)
    stops = f"{statistics.median(waits):.0f}, {max(waits):.0f}" if waits else "none"
    failings = [name for name, number in results.items() if number]
    if free_s == float("inf"):
        failings.append(f"resources were not free after {SETTLE_S:.0f} s")
    faults = "\n".join(f"| {e['at_s']:.0f} | {e['kind']} | {e['what']} |" for e in events)
    page = f"""# A sweep while things break

`python -m benchmarks.chaos --seed {seed} --faults {count}`: {len(SEEDS)} trials of {STEPS} \
updates by {RANKS} workers, two at a time, each checkpoint (every {SAVE_FREQ} updates) validated \
in simulation, on two local nodes with {NODE["num_cpus"]} logical CPUs each; once left alone and \
once struck by {len(events)} faults of {len(kinds)} kinds. Commit {commit()}; torch \
{torch.__version__}, ray {ray.__version__}.

| result | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in results.items())}
| seconds until all resources were free | {free_s:.1f} |
| drivers started | {len(struck.codes)} |
| times that workers were started (left alone: {len(SEEDS)}) | {starts} |
| seconds from the last update before such a start to the next one: median, most | {stops} |
| bad checkpoints that were passed over | {passed_over(struck.trials)} |
| wall time, left alone and struck | {walls["alone"]:.0f} s, {walls["struck"]:.0f} s |

| at s | fault | of what |
|---|---|---|
{faults}
{"".join(f"{chr(10)}Failed: {failure}" for failure in sorted(struck.failures))}"""
    return Report(page, failings)


if __name__ == "__main__":
    main()
