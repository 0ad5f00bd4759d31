"""Validation of a checkpoint during training: rollouts and the action error on held-out episodes.

Ray Train calls `validate` for each reported checkpoint. `validate` only coordinates: the rollout
actors and the action error task do the work. Every failure becomes a metric with its reason,
because Ray Train would only count failures.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayTaskError

from imf_ray.agents.pretrained import POLICY_FILES
from imf_ray.allocation import RolloutResources
from imf_ray.checkpoint_dir import VALIDATION_ERROR, checkpoint_step
from imf_ray.claims import ClaimedError
from imf_ray.cluster import cluster_address
from imf_ray.data.episodes import EpisodeRef
from imf_ray.errors import UserError
from imf_ray.files import retry_io
from imf_ray.metrics_export import MetricExporter, run_tags
from imf_ray.redaction import redact
from imf_ray.rollout.actor_pool import RolloutSpec, run_episodes
from imf_ray.rollout.artifacts import VIDEO, ArtifactRequest, VideoFormat
from imf_ray.rollout.grid_video import VideoClip, grid_video
from imf_ray.rollout.policy_fit import check_agent_fits
from imf_ray.rollout.policy_spec import PolicyKind, PolicySpec
from imf_ray.rollout.records import SUCCESS_RATE, summarize
from imf_ray.rollout.rollout_config import agent_rollout_config
from imf_ray.rollout.seed_evaluation import store_records
from imf_ray.schema import Config
from imf_ray.storage import download, to_local
from imf_ray.training.action_error import measure_action_errors
from imf_ray.training.live_progress import VALIDATION, ProgressWriter
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import ACTION_ERROR

ACTION_ERROR_TIMEOUT_S = 1800.0
"""Seconds to wait for the action error task, for which the cluster may lack resources."""
log = logging.getLogger(__name__)


def check_validation(config: Config) -> None:
    """Check that the rollouts of a run can work: its agent fits the env, which can be rendered.

    Whether rollouts can render is only known if they run on this machine. Without a simulator,
    there are no rollouts.

    Raises:
        UserError: they cannot work.
    """
    if not config.task.has_simulator:
        return
    renders_here = cluster_address(config) is None
    try:
        check_agent_fits(config, renders_here, overview=config.train.rollout_video)
    except UserError as error:
        raise UserError(
            f"{error} `train` needs no environment if it does not validate: "
            "train.rollout_val_freq_epochs=0 train.rollout_validate_on_checkpoint=false."
        ) from error


def check_any_succeeded(run_dir: RunDir, config: Config) -> None:
    """Check that a run that has ended has a result of a validation, if it was to have one.

    Raises:
        UserError: every validation failed. The message contains the reason of the last one.
    """
    if not config.train.validates:
        return
    validations = run_dir.read_validations()
    metric, result = (
        (SUCCESS_RATE, "success rate")
        if config.task.has_simulator
        else (ACTION_ERROR, "action error")
    )
    if any(metric in metrics for metrics in validations):
        return
    reasons = [metrics[VALIDATION_ERROR] for metrics in validations if VALIDATION_ERROR in metrics]
    last = f" The last one: {reasons[-1]}" if reasons else ""
    raise UserError(
        f"Training has ended, but none of the {len(validations)} validations of {run_dir} "
        f"succeeded, so it has no {result}. Its checkpoints are complete. Repeat the command to "
        f"validate them again.{last}"
    )


def validate(
    checkpoint: ray.train.Checkpoint,
    run_dir: RunDir,
    config: Config,
    val_episodes: Sequence[EpisodeRef],
    rollout: RolloutResources,
) -> dict[str, Any]:
    """Validate a checkpoint: write its metrics into the run's folder and return them.

    If the validation fails, the metric `VALIDATION_ERROR` is the reason.

    Args:
        run_dir: the run's folder.
        config: the run's configuration.
        val_episodes: the episodes held out of training.
        rollout: resources of the rollout actors.
    """
    metrics: dict[str, Any] = {}
    step = checkpoint_step(Path(checkpoint.path))
    try:
        with MetricExporter(run_tags(run_dir.path)).timed("validation_seconds"):
            if val_episodes:
                metrics |= _run_action_error_task(
                    run_dir.checkpoint(step), val_episodes, config, rollout.ray_options
                )
            if config.task.has_simulator:
                _run_rollouts(run_dir, step, config, rollout, metrics)
    except Exception as error:  # training continues; the reason is reported
        log.exception("Validation of %s failed", run_dir.checkpoint(step))
        metrics[VALIDATION_ERROR] = _reason(error)
    run_dir.write_validation(step, metrics)
    return metrics


def _reason(error: Exception) -> str:
    """Return the message of an error without secrets and the traceback of another process."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    text = str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
    return redact(text)


def _run_rollouts(
    run_dir: RunDir,
    step: int,
    config: Config,
    rollout: RolloutResources,
    metrics: dict[str, Any],
) -> None:
    """Roll out a checkpoint, add the result to `metrics`, then store records and video.

    A result remains in `metrics` if its records cannot be stored.

    Raises:
        RuntimeError: every episode ended in an error, so there is no result.
    """
    checkpoint, first_seed = run_dir.checkpoint(step), config.train.rollout_seed
    rollout_config = agent_rollout_config(config, noise_seed=first_seed)
    policy = PolicySpec(PolicyKind.CHECKPOINT, str(checkpoint))
    spec = RolloutSpec(policy, rollout_config, config.evaluate.envs_per_actor)
    seeds = range(first_seed, first_seed + config.train.rollout_num_episodes)
    video = VideoFormat() if config.train.rollout_video else None
    artifacts = {first_seed: ArtifactRequest(video)}
    started_at, records, clips = time.perf_counter(), [], []
    progress = ProgressWriter(run_dir.path, VALIDATION, len(seeds))
    progress.write(0, step)
    for episode in run_episodes(spec, seeds, rollout, artifacts):
        records.append(episode.record)
        progress.write(len(records), step)
        if VIDEO in episode.files:
            title = f"{run_dir.name}, step {step}"
            clips.append(VideoClip(episode.record, episode.files[VIDEO], title))
    errors = [record.error for record in records if record.error is not None]
    if len(errors) == len(records):
        raise RuntimeError(
            f"none of the {len(records)} episodes reached its end; the last error: {errors[-1]}"
        )
    num_env_steps = sum(record.steps for record in records)
    metrics |= summarize(records).metrics()
    metrics["rollout/fps"] = num_env_steps / (time.perf_counter() - started_at)
    for clip in clips:  # at most one; not written earlier, since episodes have a time limit
        run_dir.write_validation_video(step, grid_video([clip]))
    try:
        retry_io(store_records, run_dir.path, checkpoint.name, records)
    except ClaimedError as error:  # `evaluate` with the same settings stores the same records
        log.warning("The records of this validation are not stored, because %s", error)


def _run_action_error_task(
    checkpoint: Path,
    val_episodes: Sequence[EpisodeRef],
    config: Config,
    ray_options: Mapping[str, Any],
) -> dict[str, float]:
    """Measure the action errors in a task with the resources of a rollout actor.

    Raises:
        ray.exceptions.GetTimeoutError: the task took too long and was cancelled.
    """
    evaluate = config.evaluate
    name = f"action error of {checkpoint.parent.name}/{checkpoint.name}"  # in Ray's dashboard
    result = _action_error_task.options(**ray_options, name=name).remote(
        str(checkpoint), list(val_episodes), evaluate.use_ema_weights, evaluate.inference_steps
    )
    try:
        return ray.get(result, timeout=ACTION_ERROR_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        # Cancel only an unfinished task: a forced cancel of a finished one can kill its worker.
        ray.cancel(result, force=True)
        raise


@ray.remote(max_retries=2)
def _action_error_task(
    checkpoint: str, val_episodes: Sequence[EpisodeRef], ema: bool, inference_steps: int | None
) -> dict[str, float]:
    torch.set_num_threads(1)
    local = to_local(Path(checkpoint))
    download(local, *POLICY_FILES)
    return measure_action_errors(local, val_episodes, ema, inference_steps).metrics()
