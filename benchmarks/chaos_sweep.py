"""A sweep that `benchmarks.chaos` runs and watches."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.sweep.trial_record import FAILED, FINISHED, TrialDir
from imf_ray.training.checkpoint import CHECKPOINT_GLOB, MANIFEST_FILE
from imf_ray.training.run_dir import RunDir
from testing_support.processes import is_alive

SEEDS, STEPS, SAVE_FREQ = (1, 2, 3, 4), 300, 50
POLL_S, MAX_DRIVERS = 0.1, 60


@dataclass
class Sweep:
    """A sweep under way, and what was seen of it."""

    sweep_dir: Path
    command: list[str]
    log: Path
    driver: subprocess.Popen[bytes] | None = None
    codes: list[int] = field(default_factory=list)
    """Exit codes of the drivers so far."""
    failures: set[str] = field(default_factory=set)
    """Trials that had ended as failed when a driver ended, with their errors."""
    commits: set[tuple[Path, int]] = field(default_factory=set)
    """Every checkpoint that was seen; one that is made again is another one."""
    broken: set[tuple[Path, int]] = field(default_factory=set)
    """Checkpoints that a fault corrupted."""

    @property
    def trials(self) -> list[Path]:
        """The folders of the trials."""
        return [trial.path for trial in SweepDir(self.sweep_dir).trials()]

    def start(self) -> None:
        """Start the driver, as a person would after finding it dead."""
        if len(self.codes) > MAX_DRIVERS:
            raise RuntimeError(f"The sweep does not end; see {self.log}")
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(self.command, stdout=log, stderr=log)

    def driver_ended(self) -> bool:
        """Whether the driver has ended; how, and what it left, is noted."""
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
        """Updates that all trials together have made."""
        made = 0
        for trial in self.trials:
            steps = [line["step"] for line in RunDir(trial).read_metrics() if "loss" in line]
            made += max(steps, default=0)
        return made

    def watch(self) -> None:
        """Note the checkpoints that are new."""
        for trial in self.trials:
            for path in sorted(trial.glob(CHECKPOINT_GLOB)):
                with contextlib.suppress(FileNotFoundError):  # it was pruned just now
                    self.commits.add(identity(path))

    def watch_for(self, seconds: float) -> None:
        """Let the sweep go on for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.watch()
            time.sleep(POLL_S)

    def ended(self) -> bool:
        """Whether every trial is finished."""
        records = [TrialDir(trial).read_record() for trial in self.trials]
        done = [record is not None and record.status == FINISHED for record in records]
        return len(done) == len(SEEDS) and all(done)

    def training(self) -> list[Path]:
        """The trials that are being trained now."""
        found = []
        for trial in self.trials:
            if TrialDir(trial).read_record() is not None:
                continue
            newest = RunDir(trial).newest_checkpoint()
            alive = any(is_alive(worker["pid"]) for worker in RunDir(trial).read_workers())
            if alive and (newest is None or newest.step < STEPS):
                found.append(trial)
        return found


def identity(checkpoint: Path) -> tuple[Path, int]:
    """A checkpoint and when it was written."""
    return checkpoint, (checkpoint / MANIFEST_FILE).stat().st_mtime_ns
