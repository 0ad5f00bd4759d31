"""What a rollout leaves behind: one record an episode, and their summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from imf_ray.rollout.confidence_intervals import wilson_interval

NUM_EPISODES_METRIC = "rollout/episodes"
SUCCESS_RATE, STAGE_METRIC = "rollout/success_rate", "rollout/stage_"


@dataclass(frozen=True)
class EpisodeRecord:
    """One judged episode.

    Everything but `timing` is a function of (policy, settings, seed).
    """

    seed: int
    success: bool
    max_stage: int
    num_stages: int
    episode_return: float
    steps: int
    initial_poses: Mapping[str, Sequence[float]]
    """Of each object at the start: xyz in m, quaternion wxyz."""
    policy: str
    """Identifies the policy: a digest of its weights, or its name."""
    settings: Mapping[str, Any]
    """How it was executed, the rule of success included (`execution_settings`)."""
    error: str | None = None
    """Why the episode could not be played to its end; it then counts as one without success."""
    timing: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds under RoboIMI's names, means over the control steps (a call of the policy that
    several episodes share is divided among them); `inference_ms_p50` and `_p95` are percentiles of
    the whole calls, that is, of the latency of a chunk; `wall_s` is the episode's own time."""

    def outcome(self) -> dict[str, Any]:
        """The record without its times."""
        return {key: value for key, value in asdict(self).items() if key != "timing"}


@dataclass(frozen=True)
class RolloutSummary:
    """The judgement over a set of episodes."""

    episodes: int
    successes: int
    failed: int
    """Episodes that ended in an error; they count as not successful."""
    success_rate: float
    success_ci_low: float
    success_ci_high: float
    """95 % Wilson interval."""
    return_mean: float
    """Mean over episodes of the summed reward."""
    stage_shares: Mapping[int, float]
    """Share of episodes that reached stage k or more."""

    def metrics(self) -> dict[str, float]:
        """Flat numbers for reports, under `rollout/`."""
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
            f"success {self.success_rate:.3f} [{self.success_ci_low:.3f}, {self.success_ci_high:.3f}] "
            f"({self.successes}/{self.episodes}, 95 % Wilson{failed}), mean summed reward "
            f"{self.return_mean:.1f}, stages "
            + " ".join(f">={k}: {share:.2f}" for k, share in self.stage_shares.items())
        )


def summarize(records: Sequence[EpisodeRecord]) -> RolloutSummary:
    """Summarize at least one record.

    Raises:
        ValueError: there is none.
    """
    if not records:
        raise ValueError("No episode was finished: there is nothing to summarize.")
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
    """Success and its interval among a summary's flat metrics, as text; None if there is none."""
    if SUCCESS_RATE not in metrics:
        return None
    low, high = (metrics[f"rollout/success_{end}"] for end in ("low", "high"))
    return f"{metrics[SUCCESS_RATE]:.2f} [{low:.2f}, {high:.2f}]"


def stage_shares(metrics: Mapping[str, Any]) -> dict[int, float]:
    """The stage shares among a summary's flat metrics, lowest stage first."""
    shares = {
        int(key.removeprefix(STAGE_METRIC)): float(value)
        for key, value in metrics.items()
        if key.startswith(STAGE_METRIC)
    }
    return dict(sorted(shares.items()))
