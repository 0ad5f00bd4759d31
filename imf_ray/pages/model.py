"""The content of a page as plain data, which `pages/snapshot.py` reads and `pages/render.py` shows.

Texts are already redacted, see `imf_ray.redaction`. Times are in seconds since 1970, durations in
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """State of a run, trial, policy, sweep or comparison."""

    PENDING = "pending"
    RUNNING = "running"
    STALLED = "stalled"
    """The log has had no new line for long, see `training/pace.py`."""
    FINISHED = "finished"
    STOPPED = "stopped"
    """Stopped by the scheduler or by the user."""
    FAILED = "failed"


@dataclass(frozen=True)
class Success:
    """A success rate with its 95 % Wilson confidence interval."""

    rate: float
    low: float
    high: float
    episodes: int


@dataclass(frozen=True)
class Curve:
    """The values of one metric over training steps, thinned to a few hundred points."""

    metric: str
    steps: Sequence[int]
    values: Sequence[float]
    lows: Sequence[float] = ()
    """Lower bounds of confidence intervals; empty without any."""
    highs: Sequence[float] = ()


@dataclass(frozen=True)
class Process:
    """The process of one rank, or the driver of a trial (`rank` is None)."""

    rank: int | None
    pid: int
    host: str
    gpu_ids: Sequence[str] = ()
    log_path: str = ""


@dataclass(frozen=True)
class Media:
    """A video or an image of a run, sweep or comparison."""

    caption: str
    path: str
    """Path of the file relative to the folder of the page, for a page that links to it."""
    mime_type: str
    num_bytes: int
    content: bytes | None = None
    """Content of the file; None if it is larger than what a page embeds."""


@dataclass(frozen=True)
class Row:
    """One trial, run or policy of a page, or one baseline."""

    name: str
    """Unique name on the page."""
    label: str
    """Short name for axes and legends, such as `03`, `expert` or `n_emb=96 n_layer=4`."""
    state: State
    params: Mapping[str, Any] = field(default_factory=dict)
    """Values of the varied options (of `Snapshot.varied`), by option name."""
    success: Success | None = None
    reward: float | None = None
    """Mean over episodes of the summed reward."""
    stages: Sequence[float] = ()
    """For each stage of the task, the share of episodes that reached it or a later one."""
    action_error: float | None = None
    step: int | None = None
    """Step of the row's best checkpoint once it has ended, otherwise the training step so far."""
    max_steps: int | None = None
    saved_step: int | None = None
    """Step of the newest complete checkpoint, from which the run resumes; None without any."""
    samples_per_s: float | None = None
    time_left_s: float | None = None
    last_entry_age_s: float | None = None
    """Time since the last line of the log, at `Snapshot.read_at`."""
    restarts: int = 0
    wall_s: float | None = None
    cpu_s: float | None = None
    """CPU time of the training workers since their last start; None if they did not record it."""
    error: str | None = None
    """Reason of a failure of the run or of its last validation."""
    checkpoint: str | None = None
    """Path or URL of the best checkpoint."""
    curves: Sequence[Curve] = ()
    processes: Sequence[Process] = ()
    swanlab_run: str | None = None
    """URL of an online SwanLab run, or folder of an offline one."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """Command lines by purpose, such as `evaluate the best checkpoint`."""
    media: Sequence[Media] = ()
    notes: Sequence[str] = ()
    """Further sentences, for example about damaged lines that were skipped."""
    link: str | None = None
    """Address of the row's own page, relative to this page, if the board serves one."""


@dataclass(frozen=True)
class Pair:
    """The comparison of two policies on the same episodes, see `evaluation/comparison.py`."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p_value: float
    """Adjusted for the number of comparisons."""
    only_a: int
    only_b: int
    verdict: str


@dataclass(frozen=True)
class Launch:
    """One start or resume of a run, sweep or comparison."""

    started_at: float
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)
    """imf_ray with its commit where it is known, Python, torch, ray, mujoco."""
    host: str = ""
    pid: int = 0
    wall_s: float | None = None
    """None if the launch has not ended, or was killed."""
    cpu_s: float | None = None
    """CPU time of the process and its ended children, without Ray's processes; None as above."""
    error: str | None = None
    """Why the launch failed, or `interrupted`; None if it did not, or has not ended."""


@dataclass(frozen=True)
class DataSummary:
    """The data set of a run or sweep."""

    path: str
    format: str
    num_train: int
    num_val: int
    num_steps: int
    """Number of steps of the training episodes."""
    cameras: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Snapshot:
    """Everything that a page shows."""

    kind: str
    """`sweep`, `run`, `comparison`, `evaluation`, or `storage` (a folder of runs and sweeps)."""
    title: str
    path: str
    """Path or URL of the folder, as the user writes it."""
    read_at: float
    state: State
    rows: Sequence[Row]
    """Best first (`sweep/results.rank`); rows without a result after those with one. In a storage
    folder, rows that may still change come first, and then those with the newest log lines."""
    varied: Mapping[str, str] = field(default_factory=dict)
    """Short name of each varied option, by option name."""
    is_grid: bool = False
    """True if exactly two options are varied and every combination of their values is a row."""
    stage_names: Sequence[str] = ()
    """Each stage of the task in words, such as `both fingers touch the block`."""
    baselines: Sequence[Row] = ()
    """The expert and the untrained policy."""
    pairs: Sequence[Pair] = ()
    data: DataSummary | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Resolved options that all rows share, flat, by option name (`train.lr`)."""
    launches: Sequence[Launch] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    """Command lines by purpose: run the best again, evaluate it, resume, compare the best two."""
    media: Sequence[Media] = ()
    notes: Sequence[str] = ()

    @property
    def is_active(self) -> bool:
        """True if the content may still change."""
        return self.state in (State.PENDING, State.RUNNING, State.STALLED)

    @property
    def wall_s(self) -> float | None:
        """Time of all launches together, also of one that is running; None without any."""
        ended = [launch.wall_s for launch in self.launches if launch.wall_s is not None]
        newest = self.launches[-1] if self.launches else None
        if newest is not None and newest.wall_s is None and self.is_active:
            ended.append(max(0.0, self.read_at - newest.started_at))
        return sum(ended) if ended else None

    @property
    def steps_left(self) -> int:
        """Number of updates until all rows are trained, if none stops earlier."""
        waiting = (State.PENDING, State.RUNNING, State.STALLED)
        rows = (row for row in self.rows if row.state in waiting and row.max_steps is not None)
        return sum(max(0, (row.max_steps or 0) - (row.step or 0)) for row in rows)

    @property
    def time_left_s(self) -> float | None:
        """Estimated time until all rows are trained, at the present speed of the running rows."""
        speeds = [
            ((row.max_steps or 0) - (row.step or 0)) / row.time_left_s
            for row in self.rows
            if row.state == State.RUNNING and row.time_left_s
        ]
        return self.steps_left / sum(speeds) if speeds and sum(speeds) > 0 else None
