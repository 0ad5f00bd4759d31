"""A sweep that `benchmarks.chaos` runs and observes."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from imf_ray.checkpoint_dir import CHECKPOINT_GLOB, MANIFEST_FILE
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial_record import FAILED, FINISHED, TrialDir
from imf_ray.training.run_dir import RunDir
from testing_support.processes import is_alive

SEEDS, STEPS, SAVE_FREQ = (1, 2, 3, 4), 300, 50
POLL_S, MAX_DRIVERS = 0.1, 60


@dataclass
class Sweep:
    """A running sweep and observations of it."""

    sweep_dir: Path
    command: list[str]
    log: Path
    driver: subprocess.Popen[bytes] | None = None
    codes: list[int] = field(default_factory=list)
    """Exit codes of the drivers so far."""
    failures: set[str] = field(default_factory=set)
    """Trials that had failed when a driver ended, with their errors."""
    commits: set[tuple[Path, int]] = field(default_factory=set)
    """All observed checkpoints. One that is written again counts as another checkpoint."""
    broken: set[tuple[Path, int]] = field(default_factory=set)
    """Checkpoints that a fault corrupted."""

    @property
    def trials(self) -> list[Path]:
        """Folders of the trials."""
        return [trial.path for trial in SweepDir(self.sweep_dir).trials()]

    def start(self) -> None:
        """Start the driver with the command that a user would run after a crash."""
        if len(self.codes) > MAX_DRIVERS:
            raise RuntimeError(f"The sweep does not finish; see {self.log}")
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(self.command, stdout=log, stderr=log)

    def driver_ended(self) -> bool:
        """Return True if the driver has ended, and record its exit code and failed trials."""
        if self.driver is None or self.driver.poll() is None:
            return False
        self.codes.append(self.driver.returncode)
        for trial in self.trials:
            record = TrialDir(trial).read_record()
            if record is not None and record.status == FAILED:
                self.failures.add(f"{record.name}: {record.error}")
        self.driver = None
        return True

    def steps(self) -> int:
        """Return the total number of updates of all trials."""
        total = 0
        for trial in self.trials:
            steps = [line["step"] for line in RunDir(trial).read_metrics() if "loss" in line]
            total += max(steps, default=0)
        return total

    def observe_checkpoints(self) -> None:
        """Record new checkpoints."""
        for trial in self.trials:
            for path in sorted(trial.glob(CHECKPOINT_GLOB)):
                with contextlib.suppress(FileNotFoundError):  # it was just deleted
                    self.commits.add(checkpoint_id(path))

    def observe_for(self, seconds: float) -> None:
        """Let the sweep run for some seconds, and record checkpoints."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.observe_checkpoints()
            time.sleep(POLL_S)

    def finished(self) -> bool:
        """Return True if every trial is finished."""
        records = [TrialDir(trial).read_record() for trial in self.trials]
        done = [record is not None and record.status == FINISHED for record in records]
        return len(done) == len(SEEDS) and all(done)

    def running_trials(self) -> list[Path]:
        """Return the folders of the trials that are training."""
        running = []
        for trial in self.trials:
            if TrialDir(trial).read_record() is not None:
                continue
            newest = RunDir(trial).newest_checkpoint()
            alive = any(is_alive(worker["pid"]) for worker in RunDir(trial).read_workers())
            if alive and (newest is None or newest.step < STEPS):
                running.append(trial)
        return running


def checkpoint_id(checkpoint: Path) -> tuple[Path, int]:
    """Return a checkpoint's path and the time when it was written."""
    return checkpoint, (checkpoint / MANIFEST_FILE).stat().st_mtime_ns
