"""Baselines of a sweep (the scripted expert, an untrained agent), and videos of a sweep."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from imf_ray.allocation import RolloutResources
from imf_ray.metrics_export import SWEEP, TRIAL, MetricExporter
from imf_ray.rollout.actor_pool import RolloutSpec, run_episodes
from imf_ray.rollout.artifacts import VIDEO, ArtifactRequest, VideoFormat
from imf_ray.rollout.grid_video import VideoClip, grid_video
from imf_ray.rollout.policy_spec import EXPERT, PolicyKind, PolicySpec
from imf_ray.rollout.records import summarize
from imf_ray.rollout.rollout_config import agent_rollout_config, scripted_rollout_config
from imf_ray.sim.rendering_errors import RenderingError
from imf_ray.sim.tasks import TASKS
from imf_ray.sweep.prepare import Sweep
from imf_ray.sweep.sweep_dir import BEST_VIDEO, EXPERT_VIDEO
from imf_ray.sweep.trial_record import TrialRecord
from imf_ray.training.gauges import gauge_values

log = logging.getLogger(__name__)


def evaluate_expert(sweep: Sweep, resources: RolloutResources) -> dict[str, float]:
    """Evaluate the scripted expert on the validation seeds of the trials; return its metrics.

    They are empty if the task has no expert.
    """
    task = sweep.first_config.task
    if task.env_id not in TASKS:
        return {}
    spec = RolloutSpec(EXPERT, scripted_rollout_config(task), sweep=sweep.sweep_dir.name)
    return _evaluate_baseline(sweep, resources, spec)


def evaluate_untrained(
    sweep: Sweep, resources: RolloutResources, trial: TrialRecord
) -> dict[str, float]:
    """Evaluate a trial's agent with initial weights on the same seeds; return its metrics.

    They are empty if the trial has no checkpoint.
    """
    if trial.best_checkpoint is None:
        return {}
    config = sweep.configs[trial.name]
    rollout_config = agent_rollout_config(config, config.train.rollout_seed)
    policy = PolicySpec(PolicyKind.UNTRAINED, str(trial.best_checkpoint))
    spec = RolloutSpec(policy, rollout_config, config.evaluate.envs_per_actor)
    return _evaluate_baseline(sweep, resources, spec)


def _evaluate_baseline(
    sweep: Sweep, resources: RolloutResources, spec: RolloutSpec
) -> dict[str, float]:
    """Evaluate a policy, unless its metrics are saved, and return its metrics.

    The metrics are saved for the next session, unless an episode ended in an error.
    """
    baselines, policy = sweep.sweep_dir.read_baselines(), str(spec.policy)
    if policy not in baselines:
        train = sweep.first_config.train
        seeds = range(train.rollout_seed, train.rollout_seed + train.rollout_num_episodes)
        records = [episode.record for episode in run_episodes(spec, seeds, resources)]
        baselines[policy] = summarize(records).metrics()
        if all(record.error is None for record in records):
            sweep.sweep_dir.write_baselines(baselines)
    tags = {SWEEP: sweep.sweep_dir.name, TRIAL: str(spec.policy.kind)}
    MetricExporter(tags).set(gauge_values(baselines[policy]))
    return baselines[policy]


def record_videos(sweep: Sweep, best: TrialRecord, resources: RolloutResources) -> list[Path]:
    """Record the first validation episode of the expert and of the best checkpoint.

    Returns:
        The paths of the videos. There is none of an episode that ended in an error, of a missing
        checkpoint or expert, or on a cluster that cannot render.
    """
    config = sweep.configs[best.name]
    seed = config.train.rollout_seed
    specs, titles = {}, {EXPERT_VIDEO: str(EXPERT), BEST_VIDEO: best.name}
    if best.best_checkpoint is not None:
        checkpoint = PolicySpec(PolicyKind.CHECKPOINT, best.best_checkpoint)
        specs[BEST_VIDEO] = RolloutSpec(checkpoint, agent_rollout_config(config, noise_seed=seed))
    if config.task.env_id in TASKS:
        specs[EXPERT_VIDEO] = RolloutSpec(EXPERT, scripted_rollout_config(config.task))
    one_actor = dataclasses.replace(resources, num_actors=1)
    videos = []
    for name, spec in specs.items():
        artifacts = {seed: ArtifactRequest(VideoFormat())}
        try:
            episodes = list(run_episodes(spec, [seed], one_actor, artifacts))
        except RenderingError as error:  # the sweep itself needs no video
            log.warning("There are no videos. %s", error)
            break
        for episode in episodes:
            if VIDEO in episode.files:
                clip = VideoClip(episode.record, episode.files[VIDEO], titles[name])
                videos.append(sweep.sweep_dir.write_video(name, grid_video([clip])))
    return videos
