"""Prometheus metrics of rollouts, exported by the process that assigns the episodes.

The processes of the actors do not export them, because each process adds series that Ray keeps.
"""

from __future__ import annotations

from pathlib import Path

from imf_ray.checkpoint_dir import CHECKPOINT_GLOB
from imf_ray.metrics_export import SWEEP, TRIAL, MetricExporter, run_tags
from imf_ray.rollout.episode_runner import EpisodeResult
from imf_ray.rollout.policy_spec import PolicyKind, PolicySpec
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.rollout.timing import MILLISECONDS_PER_SECOND

HISTOGRAMS = {
    "env_step_ms": "env_step_seconds",
    "obs_read_ms": "render_seconds",
    "call_ms": "inference_seconds",
}
"""Histogram of each part of an episode in `EpisodeResult.durations_ms`."""


class RolloutMetrics:
    """The metrics of one rollout.

    Args:
        sweep: name of the sweep, if the path of the policy does not tell it.
    """

    def __init__(self, policy: PolicySpec, sweep: str | None = None) -> None:
        tags = policy_tags(policy)
        self._exporter = MetricExporter(tags if sweep is None else {**tags, SWEEP: sweep})

    def set_load(self, num_actors: int, num_waiting: int) -> None:
        """Set the number of actors that run episodes, and of episodes that wait for one."""
        self._exporter.set({"rollout_actors": num_actors, "waiting_episodes": num_waiting})

    def add(self, result: EpisodeResult) -> None:
        """Add an episode that has ended."""
        record = result.record
        self._exporter.count("episodes_total", outcome=_outcome(record))
        self._exporter.count("env_steps_total", record.steps)
        if "wall_s" in record.timing:
            self._exporter.observe("episode_seconds", record.timing["wall_s"])
        for part, histogram in HISTOGRAMS.items():
            durations_ms = result.durations_ms.get(part, ())
            seconds = [duration / MILLISECONDS_PER_SECOND for duration in durations_ms]
            self._exporter.observe(histogram, *seconds)

    def add_lost_actor(self) -> None:
        """Count an actor that died or was stuck."""
        self._exporter.count("lost_rollout_actors_total")

    def close(self) -> None:
        """Stop exporting the gauges."""
        self._exporter.close()


def policy_tags(policy: PolicySpec) -> dict[str, str]:
    """Return the tags of a policy: of a checkpoint, those of its run; else its own name twice."""
    path = Path(policy.path)
    is_checkpoint = policy.is_agent and path.match(CHECKPOINT_GLOB)
    tags = run_tags(path.parent if is_checkpoint else path)
    if policy.kind == PolicyKind.CHECKPOINT:
        return tags
    return {SWEEP: tags[SWEEP] or str(policy.kind), TRIAL: str(policy.kind)}


def _outcome(record: EpisodeRecord) -> str:
    if record.error is not None:
        return "error"
    return "success" if record.success else "failure"
