"""Faults of `benchmarks.chaos`: killed processes, damaged files, a full disk, a lost node."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from benchmarks.chaos_sweep import SAVE_FREQ, STEPS, Sweep, checkpoint_id
from benchmarks.process_stats import process_tree
from imf_ray.agents.pretrained import WEIGHTS_FILE
from imf_ray.checkpoint_dir import MANIFEST_FILE, TRAIN_STATE_FILE
from imf_ray.training.run_dir import RunDir
from testing_support.processes import is_alive

NODE = {"num_cpus": 2}
DRIVER_KILLED, CTRL_C = "driver killed", "Ctrl-C"
NODE_TRIES = 5
BROKEN_S = 15.0
"""Seconds that the disk stays full. Also the seconds that an episode stays truncated after new
workers have started."""
MAX_WORKER_WAIT_S = 180.0
"""Maximum seconds to wait for new workers after an episode was truncated."""


class Faults:
    """Faults to inject. Each returns a description, or None if the fault is impossible now."""

    def __init__(
        self, cluster: Cluster, sweep: Sweep, data: Path, disk: Path | None, rng: Any
    ) -> None:
        self._cluster, self._sweep, self._data, self._disk = cluster, sweep, data, disk
        self._rng = rng
        self._node = self._add_node()

    def kinds(self) -> dict[str, Callable[[], str | None]]:
        """Return the faults by name."""
        faults: dict[str, Callable[[], str | None]] = {
            "worker killed": lambda: self._kill("ray::RayTrainWorker"),
            "controller killed": lambda: self._kill("ray::TrainController"),
            "trial killed": lambda: self._kill("ray::ImplicitFunc"),
            "rollout actor killed": lambda: self._kill("ray::RolloutActor"),
            DRIVER_KILLED: lambda: self._signal_driver(signal.SIGKILL),
            CTRL_C: lambda: self._signal_driver(signal.SIGINT),
            "node lost": self._lose_node,
            "checkpoint corrupted": self._corrupt_checkpoint,
            "episode truncated": self._truncate_episode,
        }
        if self._disk is not None:
            faults["disk full"] = self._fill_disk
        return faults

    def _add_node(self) -> Any:
        """Add a node. Retry, because Ray waits only 30 s for it, too short on busy cores."""
        for _ in range(NODE_TRIES):
            before = set(psutil.Process().children())
            try:
                return self._cluster.add_node(wait=False, **NODE)
            except Exception as error:
                print(f"A node did not start: {error}", flush=True)
                for child in set(psutil.Process().children()) - before:
                    child.kill()
        raise RuntimeError(f"No node started in {NODE_TRIES} tries.")

    def _kill(self, title: str) -> str | None:
        matching = []
        for process in process_tree(os.getpid()):
            with contextlib.suppress(psutil.Error):
                if process.cmdline() and process.cmdline()[0].startswith(title):
                    matching.append(process)
        if not matching:
            return None
        victim = matching[self._rng.integers(len(matching))]
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            return f"process {victim.pid}"
        return None

    def _signal_driver(self, number: int) -> str | None:
        driver = self._sweep.driver
        if driver is None or driver.poll() is not None or not self._sweep.running_trials():
            return None
        driver.send_signal(number)
        return f"process {driver.pid}"

    def _lose_node(self) -> str:
        self._sweep.observe_checkpoints()
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._add_node()
        return "and replaced"

    def _kill_workers(self, trial: Path) -> set[int]:
        pids = {worker["pid"] for worker in RunDir(trial).read_workers()}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids

    def _corrupt_checkpoint(self) -> str | None:
        """Flip a bit of the newest checkpoint, and kill the workers so that new ones load it."""
        for trial in self._sweep.running_trials():
            newest = RunDir(trial).newest_checkpoint()
            # After the last checkpoint the trial is trained, and no worker loads it again.
            if newest is None or not 2 * SAVE_FREQ <= newest.step < STEPS:
                continue
            path = newest.path / str(
                self._rng.choice([WEIGHTS_FILE, TRAIN_STATE_FILE, MANIFEST_FILE])
            )
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            self._sweep.broken.add(checkpoint_id(newest.path))
            path.write_bytes(content)
            self._sweep.broken.add(checkpoint_id(newest.path))  # the id changes with the manifest
            self._kill_workers(trial)
            return f"{trial.name}/{newest.path.name}/{path.name}"
        return None

    def _truncate_episode(self) -> str | None:
        """Truncate an episode and kill all workers; restore it when new workers have read it."""
        trials = self._sweep.running_trials()
        if not trials:
            return None
        episodes = sorted(self._data.glob("*.hdf5"))
        path = episodes[self._rng.integers(len(episodes))]
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        try:
            killed = set().union(*(self._kill_workers(trial) for trial in trials))
            deadline = time.monotonic() + MAX_WORKER_WAIT_S
            while time.monotonic() < deadline:
                workers = [worker for trial in trials for worker in RunDir(trial).read_workers()]
                if any(w["pid"] not in killed and is_alive(w["pid"]) for w in workers):
                    break
                self._sweep.observe_for(1.0)
            self._sweep.observe_for(BROKEN_S)
        finally:
            path.write_bytes(content)
        return path.name

    def _fill_disk(self) -> str | None:
        if not self._sweep.running_trials():
            return None
        assert self._disk is not None
        ballast = self._disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))
        self._sweep.observe_for(BROKEN_S)
        size = ballast.stat().st_size
        ballast.unlink()
        return f"{size / 2**20:.0f} MiB of ballast"
