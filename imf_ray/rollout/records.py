"""Results of rollouts: one record per episode, and their summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from imf_ray.checkpoint_dir import SUCCESS_RATE
from imf_ray.rollout.confidence_intervals import wilson_interval

NUM_EPISODES_METRIC = "rollout/episodes"
STAGE_METRIC = "rollout/stage_"


class RolloutMetadata(NamedTuple):
    """Values that all records of a rollout have in common."""

    policy: str
    settings: Mapping[str, Any]
    num_stages: int


@dataclass(frozen=True)
class EpisodeRecord:
    """The result of one episode.

    All fields except `timing` depend only on (policy, settings, seed).
    """

    seed: int
    success: bool
    max_stage: int
    """Highest stage reached; 0 if none."""
    num_stages: int
    """Number of the task's stages; the last one is success."""
    episode_return: float
    """Sum of the rewards."""
    steps: int
    """Number of environment steps."""
    initial_poses: Mapping[str, Sequence[float]]
    """Pose of each object at the start of the episode: xyz in m, quaternion wxyz."""
    policy: str
    """Identifier of the policy: a digest of its weights, or a name such as 'expert'."""
    settings: Mapping[str, Any]
    """Execution settings and the definition of success; see `recorded_settings`."""
    error: str | None = None
    """Why the episode did not reach its end; None if it did. An error counts as a failure."""
    timing: Mapping[str, float] = field(default_factory=dict)
    """Mean milliseconds per environment step, unless said otherwise; the names are RoboIMI's. The
    time of a policy call for several episodes is divided among them. `inference_ms_p50` and
    `inference_ms_p95` are percentiles of whole calls: the latency of predicting a chunk. `wall_s`
    is the episode's own computing time in seconds."""

    def without_timing(self) -> dict[str, Any]:
        """Return the record as a dictionary without its timing."""
        return {key: value for key, value in asdict(self).items() if key != "timing"}


@dataclass(frozen=True)
class RolloutSummary:
    """Statistics of a set of episodes."""

    episodes: int
    successes: int
    failed: int
    """Number of episodes that ended in an error. They count as unsuccessful, like others."""
    success_rate: float
    success_ci_low: float
    success_ci_high: float
    """Bounds of the 95 % Wilson confidence interval of the success rate."""
    return_mean: float
    """Mean over episodes of the summed reward."""
    stage_shares: Mapping[int, float]
    """For each stage k, the share of episodes that reached stage k or a higher one."""

    def metrics(self) -> dict[str, float]:
        """Return the statistics as metrics whose names start with `rollout/`."""
        values = {
            NUM_EPISODES_METRIC: float(self.episodes),
            "rollout/failed": float(self.failed),
            SUCCESS_RATE: self.success_rate,
            "rollout/success_ci_low": self.success_ci_low,
            "rollout/success_ci_high": self.success_ci_high,
            "rollout/return_mean": self.return_mean,
        }
        return values | {f"{STAGE_METRIC}{k}": share for k, share in self.stage_shares.items()}

    def __str__(self) -> str:
        failed = f", {self.failed} ended in an error" if self.failed else ""
        return (
            f"success {self.success_rate:.3f} "
            f"[{self.success_ci_low:.3f}, {self.success_ci_high:.3f}] "
            f"({self.successes}/{self.episodes} episodes, 95 % Wilson confidence interval{failed})"
            f", mean summed reward {self.return_mean:.1f}, share that reached stage "
            + " ".join(f">={k}: {share:.2f}" for k, share in self.stage_shares.items())
        )


def summarize(records: Sequence[EpisodeRecord]) -> RolloutSummary:
    """Compute the statistics of one or more records.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError("No episode was finished, so there is nothing to summarize.")
    successes = sum(record.success for record in records)
    low, high = wilson_interval(successes, len(records))
    stages = range(1, max(record.num_stages for record in records) + 1)
    return RolloutSummary(
        episodes=len(records),
        successes=successes,
        failed=sum(record.error is not None for record in records),
        success_rate=successes / len(records),
        success_ci_low=low,
        success_ci_high=high,
        return_mean=float(np.mean([record.episode_return for record in records])),
        stage_shares={
            stage: float(np.mean([record.max_stage >= stage for record in records]))
            for stage in stages
        },
    )


def describe_success(metrics: Mapping[str, Any]) -> str | None:
    """Return the success rate with its confidence interval, such as '0.75 [0.60, 0.86]'.

    Returns None if the metrics are not those of a rollout.
    """
    names = (SUCCESS_RATE, "rollout/success_ci_low", "rollout/success_ci_high")
    if not {*names, NUM_EPISODES_METRIC} <= metrics.keys():
        return None
    rate, low, high = (metrics[name] for name in names)
    return f"{rate:.2f} [{low:.2f}, {high:.2f}]"


def stage_shares(metrics: Mapping[str, Any]) -> dict[int, float]:
    """Return the `stage_shares` of a summary from its `metrics()`, lowest stage first."""
    shares = {
        int(key.removeprefix(STAGE_METRIC)): float(value)
        for key, value in metrics.items()
        if key.startswith(STAGE_METRIC)
    }
    return dict(sorted(shares.items()))
