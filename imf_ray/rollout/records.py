"""What a rollout leaves behind: one record an episode, and their summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imf_ray.files import write_atomically
from imf_ray.rollout.success import wilson_interval

STAGES = (1, 2, 3, 4)
SUCCESS_RULE = "stage 4 was reached at any step of the episode"


@dataclass(frozen=True)
class EpisodeRecord:
    """One judged episode.

    Everything but `timing` is a function of (policy, seed, settings); `timing` holds milliseconds
    under RoboIMI's names, means over the control steps, and percentiles of the inference calls.
    """

    seed: int
    success: bool
    max_stage: int
    reward_sum: float
    steps: int
    initial_cube_pose: tuple[float, ...]
    policy: str
    """Identifies the policy: a digest of its weights, or its name."""
    timing: Mapping[str, float] = field(default_factory=dict)

    def outcome(self) -> dict[str, Any]:
        """The record without its times."""
        return {key: value for key, value in asdict(self).items() if key != "timing"}


@dataclass(frozen=True)
class RolloutSummary:
    """The judgement over a set of episodes."""

    episodes: int
    successes: int
    success_rate: float
    success_low: float
    success_high: float
    """95 % Wilson interval."""
    reward_sum: float
    """Mean over episodes of the summed reward."""
    stage_shares: Mapping[int, float]
    """Share of episodes that reached stage k or more."""

    def metrics(self) -> dict[str, float]:
        """Flat numbers for reports, under `rollout/`."""
        values = {
            "rollout/episodes": float(self.episodes),
            "rollout/success_rate": self.success_rate,
            "rollout/success_low": self.success_low,
            "rollout/success_high": self.success_high,
            "rollout/reward_sum": self.reward_sum,
        }
        return values | {f"rollout/stage_{k}": share for k, share in self.stage_shares.items()}

    def __str__(self) -> str:
        return (
            f"success {self.success_rate:.3f} [{self.success_low:.3f}, {self.success_high:.3f}] "
            f"({self.successes}/{self.episodes}, 95 % Wilson), mean summed reward "
            f"{self.reward_sum:.1f}, stages "
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
    return RolloutSummary(
        episodes=len(records),
        successes=successes,
        success_rate=successes / len(records),
        success_low=low,
        success_high=high,
        reward_sum=float(np.mean([record.reward_sum for record in records])),
        stage_shares={
            stage: float(np.mean([record.max_stage >= stage for record in records]))
            for stage in STAGES
        },
    )


def write_records(path: Path, records: Sequence[EpisodeRecord]) -> None:
    """Write JSON lines in the order of the seeds; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(records, key=lambda record: record.seed)
    write_atomically(path, "".join(json.dumps(asdict(record)) + "\n" for record in ordered))
