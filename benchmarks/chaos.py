"""A sweep of small trials while things break around it, against the same sweep left alone.

    python -m benchmarks.chaos --seed 0 --faults 20 --work runs/chaos

Starts two local nodes, collects a few demonstrations, and runs the same sweep twice. Through the
second one, faults strike as training comes along: processes are killed, a node is lost, the newest
checkpoint is corrupted, an episode truncated, the disk filled. A driver that is gone is started
again by `resume=auto`. In the end both sweeps must have seen the same samples and made the same
weights. Filling the disk needs the right to mount a file system; without it that fault is left out.
"""

# ruff: noqa: E402  (the environment is set before Ray is imported)
from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imf_ray.environment import prepare_environment

prepare_environment(own_cluster=True)

import numpy as np
import psutil
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from benchmarks.notes import commit
from benchmarks.watching import family
from imf_ray.agents.pretrained import EMA_WEIGHTS, WEIGHTS
from imf_ray.files import read_lines, write_atomically
from imf_ray.launch import EXIT_BAD_INPUT
from imf_ray.sweep.runner import TRIALS_DIR
from imf_ray.sweep.trial import FINISHED, read_trial
from imf_ray.training.checkpoint import MANIFEST, PATTERN, newest_checkpoint, step_of
from imf_ray.training.tracking import METRICS_FILE, RESTARTS, read_metrics, read_workers
from tests.conftest import TINY_AGENT

SEEDS, STEPS, SAVE_FREQ = (1, 2, 3, 4), 120, 20
ROLLOUT_STEPS = 60
"""Judging whole episodes would take longer than the trainings, and show nothing more."""
NODE = {"num_cpus": 2}
DISK_BYTES = 256 * 2**20
BROKEN_S = 15.0
"""How long an episode stays truncated, or the disk full."""
LAST_FAULT = 0.9
"""Share of the training after which no fault strikes."""
SETTLE_S, POLL_S, MAX_DRIVERS, LONGEST_S = 60.0, 0.1, 60, 7200.0
OPTIONS = (
    "agent=resnet_imf_attnres_multitoken",
    *TINY_AGENT,
    "train.batch_size=8",
    f"train.max_steps={STEPS}",
    f"train.save_freq={SAVE_FREQ}",
    "train.warmup_steps=1",
    "train.log_freq=1",
    "train.num_workers=1",
    "train.log_samples=true",
    "train.max_failures=1000",
    "train.rollout_num_episodes=2",
    "train.rollout_validate_on_checkpoint=true",
    "train.val_split=0.2",
    "task.image_size=48",
    "tune.max_concurrent_trials=2",
)


@dataclass
class Sweep:
    """A sweep under way, and what was seen of it."""

    sweep_dir: Path
    command: list[str]
    log: Path
    driver: subprocess.Popen[bytes] | None = None
    drivers: int = 0
    commits: dict[tuple[Path, int], float] = field(default_factory=dict)
    """When each checkpoint was first seen; one that is made again is another one."""
    broken: set[tuple[Path, int]] = field(default_factory=set)
    """Checkpoints that a fault corrupted."""

    @property
    def trials(self) -> list[Path]:
        """The folders of the trials."""
        return sorted((self.sweep_dir / TRIALS_DIR).glob("*"))

    def start(self) -> None:
        """Start the driver, as a person would after finding it dead."""
        self.drivers += 1
        if self.drivers > MAX_DRIVERS:
            raise RuntimeError(f"The sweep does not end; see {self.log}")
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(self.command, stdout=log, stderr=log)

    def progress(self) -> float:
        """Share of all updates that was made."""
        made = 0
        for trial in self.trials:
            steps = [line["step"] for line in read_metrics(trial / METRICS_FILE) if "loss" in line]
            made += max(steps, default=0)
        return made / (len(SEEDS) * STEPS)

    def watch(self) -> None:
        """Note the checkpoints that are new."""
        for trial in self.trials:
            for path in sorted(trial.glob(PATTERN)):
                with contextlib.suppress(FileNotFoundError):  # it was pruned just now
                    self.commits.setdefault(identity(path), time.time())

    def watch_for(self, seconds: float) -> None:
        """Let the sweep go on for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.watch()
            time.sleep(POLL_S)

    def ended(self) -> bool:
        """Whether every trial is finished."""
        records = [read_trial(trial) for trial in self.trials]
        done = [record is not None and record.status == FINISHED for record in records]
        return len(done) == len(SEEDS) and all(done)

    def running(self) -> list[Path]:
        """The trials whose workers are there."""
        alive = [t for t in self.trials if read_trial(t) is None]
        return [t for t in alive if any(is_alive(w["pid"]) for w in read_workers(t))]


def identity(checkpoint: Path) -> tuple[Path, int]:
    """A checkpoint and when it was written."""
    return checkpoint, (checkpoint / MANIFEST).stat().st_mtime_ns


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Faults:
    """What can go wrong: each method breaks something, and says what, or None if it cannot now."""

    def __init__(
        self, cluster: Cluster, sweep: Sweep, data: Path, disk: Path | None, rng: Any
    ) -> None:
        self._cluster, self._sweep, self._data, self._disk = cluster, sweep, data, disk
        self._rng = rng
        self._node = cluster.add_node(**NODE)

    def kinds(self) -> dict[str, Callable[[], str | None]]:
        """The faults by name."""
        found: dict[str, Callable[[], str | None]] = {
            "worker killed": lambda: self._kill("ray::RayTrainWorker"),
            "controller killed": lambda: self._kill("ray::TrainController"),
            "trial killed": lambda: self._kill("ray::ImplicitFunc"),
            "simulator killed": lambda: self._kill("ray::RolloutActor"),
            "driver killed": lambda: self._signal_driver(signal.SIGKILL),
            "Ctrl-C": lambda: self._signal_driver(signal.SIGINT),
            "node lost": self._lose_node,
            "checkpoint corrupted": self._corrupt_checkpoint,
            "episode truncated": self._truncate_episode,
        }
        if self._disk is not None:
            found["disk full"] = self._fill_disk
        return found

    def _kill(self, title: str) -> str | None:
        found = []
        for process in family(os.getpid()):
            with contextlib.suppress(psutil.Error):
                if process.cmdline() and process.cmdline()[0].startswith(title):
                    found.append(process)
        if not found:
            return None
        victim = found[self._rng.integers(len(found))]
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            return f"process {victim.pid}"
        return None

    def _signal_driver(self, number: int) -> str | None:
        driver = self._sweep.driver
        if driver is None or driver.poll() is not None or not self._sweep.running():
            return None
        driver.send_signal(number)
        return f"process {driver.pid}"

    def _lose_node(self) -> str:
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._cluster.add_node(wait=False, **NODE)  # it waits for half a minute only
        return "and another one started"

    def _kill_workers(self, trial: Path) -> None:
        for worker in read_workers(trial):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)

    def _corrupt_checkpoint(self) -> str | None:
        """Flip a byte of the newest checkpoint, and kill the worker so that it is looked for."""
        for trial in self._sweep.running():
            newest = newest_checkpoint(trial)
            # With the last one the trial is trained: nobody would look for it again.
            if newest is None or not 2 * SAVE_FREQ <= newest.step < STEPS:
                continue
            path = newest.path / WEIGHTS
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            self._sweep.broken.add(identity(newest.path))
            path.write_bytes(content)
            self._kill_workers(trial)
            return f"{trial.name}/{newest.path.name}"
        return None

    def _truncate_episode(self) -> str | None:
        """Cut an episode off, have all workers start again, and put it back after a while."""
        if not self._sweep.running():
            return None
        episodes = sorted(self._data.glob("*.hdf5"))
        path = episodes[self._rng.integers(len(episodes))]
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        for trial in self._sweep.running():
            self._kill_workers(trial)
        self._sweep.watch_for(BROKEN_S)
        path.write_bytes(content)
        return path.name

    def _fill_disk(self) -> str:
        assert self._disk is not None
        ballast = self._disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))
        self._sweep.watch_for(BROKEN_S)
        size = ballast.stat().st_size
        ballast.unlink()
        return f"{size / 2**20:.0f} MiB of ballast"


def carry_out(sweep: Sweep, faults: Faults | None, count: int, rng: Any) -> list[dict[str, Any]]:
    """Run a sweep to its end while faults strike; returns them with their times."""
    kinds = {} if faults is None else faults.kinds()
    order = list(itertools.islice(_in_turn(list(kinds), rng), count)) if kinds else []
    struck: list[dict[str, Any]] = []
    begun = time.monotonic()
    sweep.start()
    while True:
        if time.monotonic() - begun > LONGEST_S:
            raise RuntimeError(f"The sweep does not end; see {sweep.log}")
        sweep.watch()
        assert sweep.driver is not None
        if sweep.driver.poll() is not None:
            if sweep.driver.returncode == 0 and sweep.ended():
                return struck
            if sweep.driver.returncode == EXIT_BAD_INPUT and not struck:
                raise RuntimeError(f"The sweep does not begin; see {sweep.log}")
            sweep.start()
        due = LAST_FAULT * (len(struck) + 1) / (len(order) + 1)
        if len(struck) < len(order) and sweep.progress() >= due:
            kind = order[len(struck)]
            what = kinds[kind]()
            if what is not None:
                at = time.monotonic() - begun
                struck.append({"kind": kind, "what": what, "at_s": at, "due": due})
                print(f"{at:6.0f} s  {kind}: {what}", flush=True)
        time.sleep(POLL_S)


def _in_turn(kinds: list[str], rng: Any) -> Iterator[str]:
    """Every kind once in random order, then again."""
    while True:
        yield from rng.permutation(kinds).tolist()


def lost_steps(sweep: Sweep) -> int:
    """Updates that were in a whole checkpoint when workers started, and were made again."""
    lost = 0
    for trial in sweep.trials:
        for start in read_metrics(trial / METRICS_FILE):
            if RESTARTS not in start:
                continue
            held = [
                step_of(found[0])
                for found, seen in sweep.commits.items()
                if found[0].parent == trial and seen < start["time"] and found not in sweep.broken
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
        assert len(expected) == STEPS
        found["updates without samples"] += len(expected.keys() - seen.keys())
        for key, records in seen.items():
            found["updates with other samples"] += any(r != expected[key][0] for r in records)
        last = f"checkpoint_{STEPS:08d}"
        for name in (WEIGHTS, EMA_WEIGHTS):
            a, b = (load_file(trial / last / name) for trial in (ours, theirs))
            same = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
            found["checkpoints that differ"] += not same
    return dict(found)


def settle(total: float) -> float:
    """Seconds until all CPUs are free again; infinite if they do not become so in time."""
    begun = time.monotonic()
    while time.monotonic() - begun < SETTLE_S:
        if abs(ray.available_resources().get("CPU", 0.0) - total) < 1e-3:
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
    with small_disk(work / "disk") as disk:
        report = run(arguments.seed, arguments.faults, work, disk)
    print(report)
    if arguments.page is not None:
        write_atomically(arguments.page, report)


def run(seed: int, count: int, work: Path, disk: Path | None) -> str:
    """Both sweeps and their comparison, as a page."""
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
    collect = [*python, "imf_ray.collect", *options, "collect.episodes=10"]
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
        if struck.driver is not None:
            struck.driver.kill()
    struck_s = time.monotonic() - begun - alone_s
    free_s = settle(total)
    page = _page(seed, events, clean, struck, {"alone": alone_s, "struck": struck_s}, free_s)
    ray.shutdown()
    cluster.shutdown()
    return page


def _page(
    seed: int,
    events: list[dict[str, Any]],
    clean: Sweep,
    struck: Sweep,
    walls: dict[str, float],
    free_s: float,
) -> str:
    kinds = Counter(event["kind"] for event in events)
    starts = sum(RESTARTS in e for t in struck.trials for e in read_metrics(t / METRICS_FILE))
    results = {
        "committed steps lost": lost_steps(struck),
        **differences(clean, struck),
        "seconds until all resources were free": f"{free_s:.1f}",
    }
    faults = "\n".join(f"| {e['at_s']:.0f} | {e['kind']} | {e['what']} |" for e in events)
    return f"""# A sweep while things break

`python -m benchmarks.chaos --seed {seed} --faults {len(events)}`: {len(SEEDS)} trials of {STEPS} \
updates, two at a time, each checkpoint (every {SAVE_FREQ} updates) validated in simulation, on \
two local nodes with {NODE["num_cpus"]} logical CPUs each; once left alone and once struck by \
{len(events)} faults of {len(kinds)} kinds. Commit {commit()}; torch {torch.__version__}, ray \
{ray.__version__}.

| result | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in results.items())}
| drivers started | {struck.drivers} |
| times that workers were started (left alone: {len(SEEDS)}) | {starts} |
| wall time, left alone and struck | {walls["alone"]:.0f} s, {walls["struck"]:.0f} s |

| at s | fault | of what |
|---|---|---|
{faults}
"""


if __name__ == "__main__":
    main()
