"""Contents of the small files in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from imf_ray.aliases import METRICS, rename_keys
from imf_ray.checkpoint_dir import VALIDATION_ERROR
from imf_ray.data.episodes import EpisodeRef

VAL_EPISODES_KEY = "held_out_files"
RESTARTS = "restarts"
"""Metric: number of times the run was resumed; in the first line of each launch."""
INVALID_CHECKPOINTS, SKIPPED_EPISODES = "invalid_checkpoints_skipped", "skipped_episodes"
"""Metrics: see `training/tracking.Tracker`."""
ACTION_ERROR, ACTION_MAE = "action_error", "action_mae"
HOLD_MAE, MEAN_MAE = "action_mae_hold", "action_mae_mean"
"""Names of the metrics of `action_error.ActionErrors`."""
VALIDATED = "validated"
"""Metric: marks a line with the result of a validation, successful or failed; always 1."""


@dataclass(frozen=True)
class WorkerRecord:
    """The process of one rank."""

    rank: int
    pid: int
    host: str
    gpu_ids: list[str]
    """GPU ids as reported by Ray: usually numbers, sometimes UUIDs."""
    log_path: str
    placement_group: str
    """Hex id of the placement group of all ranks."""
    cpu_s: float | None = None
    """CPU time of the process at the end of its training, in seconds; None before."""
    swanlab_run: str | None = None
    """URL or folder of the SwanLab run, of rank 0 if it logs to SwanLab."""


@dataclass(frozen=True)
class DataManifest:
    """The episodes of a run, and the number of virtual shards of its sample plan (`data.json`)."""

    episodes: list[list[Any]]
    """File name, length and content hash of each training episode."""
    virtual_shards: int
    """Number of virtual shards (see `data/sampling.py`), fixed at the first launch of the run."""
    val_episodes: list[EpisodeRef]
    """Episodes held out for validation."""

    @classmethod
    def from_json(cls, content: Any) -> DataManifest:
        """Make a manifest from the content of `data.json`, also of an earlier version."""
        val_episodes = [EpisodeRef.from_dict(row) for row in content.get(VAL_EPISODES_KEY, [])]
        return cls(list(content["episodes"]), int(content["virtual_shards"]), val_episodes)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `data.json`."""
        return {
            "episodes": self.episodes,
            "virtual_shards": self.virtual_shards,
            VAL_EPISODES_KEY: [asdict(episode) for episode in self.val_episodes],
        }


@dataclass(frozen=True)
class InitRecord:
    """The weights that a run started with (`train.init_from`)."""

    source: str
    """Path of the policy when the run started."""
    parts: str
    """`train.init_parts`."""
    digest: str
    """`weights_digest` of the policy."""
    untrained: list[str]
    """Names of the agent's tensors that started untrained."""


def parse_metrics(row: Any) -> dict[str, Any]:
    """Check a line of `metrics.jsonl` or `validations.jsonl`, and give metrics their new names.

    Raises:
        AttributeError, TypeError, ValueError: the line is not one of these files.
    """
    metrics = rename_keys(row, METRICS)
    if "step" not in metrics:
        raise ValueError("step is missing")
    for name, value in metrics.items():
        if not isinstance(value, (int, float)) and name != VALIDATION_ERROR:
            raise TypeError(f"{name} is not a number")
    return metrics


def merge_metrics(before: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the latest value of each metric: `before`, overwritten with the values of one line.

    A validation line does not change `step`, because its own step is that of an earlier checkpoint.
    It also removes the error of the previous validation.
    """
    if VALIDATED not in line:
        return {**before, **line}
    others = {name: value for name, value in before.items() if name != VALIDATION_ERROR}
    return {**others, **line, "step": before.get("step", 0)}
