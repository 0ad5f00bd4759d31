"""Judging a checkpoint beside training: rollouts in simulation and the held-out action error.

`validate` is what Ray Train calls with a reported checkpoint. It only coordinates: simulators are
actors of their own, the action error is a task of its own, and every failure becomes a metric that
says why: Ray Train would only count it as failed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch

from imf_ray.agents.pretrained import POLICY_FILES, load_agent
from imf_ray.allocation import RolloutResources
from imf_ray.config import config_from_dict
from imf_ray.data.episodes import EpisodeFields, EpisodeRef
from imf_ray.data.windows import WindowSpec, sample_windows
from imf_ray.files import retry_io, write_atomically
from imf_ray.rollout.actor_pool import RolloutSpec, run_episodes
from imf_ray.rollout.artifacts import VIDEO, ArtifactRequest
from imf_ray.rollout.records import summarize
from imf_ray.rollout.rollout_config import agent_rollout_config
from imf_ray.rollout.seed_evaluation import store_records
from imf_ray.schema import Config
from imf_ray.storage import download, to_local
from imf_ray.training.checkpoint import (
    VALIDATION_ERROR,
    checkpoint_step,
    validation_video,
    write_validation,
)

ACTION_ERROR_WINDOWS = 256
ACTION_ERROR_BATCH = 32
ACTION_ERROR_LIMIT_S = 1800.0
"""How long to wait for the action error, for which a cluster may have no room any more."""
log = logging.getLogger(__name__)


def window_spec(config: Config) -> WindowSpec:
    """How this run's windows are cut."""
    selection = EpisodeFields(
        cameras=tuple(config.agent.camera_names),
        objects=config.agent.recorded_objects,
        action_space=config.task.action_space,
        image_size=config.task.image_size,
    )
    return WindowSpec(
        selection,
        obs_horizon=config.agent.obs_horizon,
        pred_horizon=config.agent.pred_horizon,
    )


def validate(
    checkpoint: ray.train.Checkpoint,
    run_dir: str,
    config: Mapping[str, Any],
    held_out: Sequence[EpisodeRef],
    rollout: RolloutResources,
) -> dict[str, Any]:
    """Metrics of a checkpoint; `VALIDATION_ERROR` says what went wrong, if anything did.

    Args:
        run_dir: the run's folder, as the driver names it.
        config: the run's, as a dictionary.
        held_out: the episodes held out of training.
        rollout: the rollout actors.
    """
    metrics: dict[str, Any] = {}
    folder = to_local(Path(run_dir)) / Path(checkpoint.path).name
    try:
        run = config_from_dict(config)
        if held_out:
            task = _action_error_task.options(**rollout.ray_options)
            judged = run.evaluate.use_ema_weights, run.evaluate.inference_steps
            pending = task.remote(str(folder), list(held_out), *judged)
            try:
                metrics["action_error"] = ray.get(pending, timeout=ACTION_ERROR_LIMIT_S)
            finally:
                ray.cancel(pending, force=True)  # one that found no room would wait for ever
        first = run.train.rollout_seed
        settings = agent_rollout_config(run, noise_seed=first)
        job = RolloutSpec(str(folder), settings, run.evaluate.envs_per_actor)
        seeds = range(first, first + run.train.rollout_num_episodes)
        keep = {first: ArtifactRequest(video=run.train.rollout_video)}
        begun, records = time.perf_counter(), []
        videos: list[bytes] = []  # at most one: written once nobody's time limit runs
        for played in run_episodes(job, seeds, rollout, keep):
            records.append(played.record)
            if VIDEO in played.files:
                videos.append(played.files[VIDEO])
        metrics |= summarize(records).metrics()
        steps = sum(record.steps for record in records)
        metrics["rollout/fps"] = steps / (time.perf_counter() - begun)
        for video in videos:
            path = validation_video(folder.parent, checkpoint_step(folder))
            retry_io(partial(write_atomically, path, video))
        retry_io(lambda: store_records(folder.parent, folder.name, records))
    except Exception as error:  # the promise above: training goes on, and the report says why
        log.exception("Validation of %s failed", folder)
        metrics[VALIDATION_ERROR] = f"{type(error).__name__}: {error}"
    retry_io(lambda: write_validation(folder, metrics))
    return metrics


def action_error(
    folder: Path,
    held_out: Sequence[EpisodeRef],
    ema: bool = True,
    inference_steps: int | None = None,
) -> float:
    """Mean absolute error of predicted actions on held-out windows, at fixed noise.

    In units of the normalized action (a dimension's range is 2), over valid actions; the windows
    and their noise are the same for every checkpoint of a data set.
    """
    agent, config = load_agent(folder, ema=ema)
    agent.inference_steps = inference_steps or agent.inference_steps
    windows = sample_windows(held_out, window_spec(config), ACTION_ERROR_WINDOWS, seed=0)
    rng = np.random.default_rng(0)
    total, count = 0.0, 0
    for first in range(0, len(windows["action"]), ACTION_ERROR_BATCH):
        part = slice(first, first + ACTION_ERROR_BATCH)
        images = windows["images"]
        assert isinstance(images, dict)
        observation = {
            "images": {name: torch.from_numpy(frames[part]) for name, frames in images.items()},
            "qpos": torch.from_numpy(windows["qpos"][part]),  # type: ignore[index]
        }
        actions = torch.from_numpy(windows["action"][part])  # type: ignore[index]
        valid = ~torch.from_numpy(windows["action_is_pad"][part])  # type: ignore[index]
        noise = torch.from_numpy(rng.standard_normal(actions.shape, dtype=np.float32))
        normalize = agent.action_normalizer.normalize
        error = normalize(agent.predict_action(observation, noise=noise)) - normalize(actions)
        total += float(error.abs()[valid].sum())
        count += int(valid.sum()) * error.shape[-1]
    return total / count


@ray.remote(max_retries=2)
def _action_error_task(
    folder: str, held_out: Sequence[EpisodeRef], ema: bool, inference_steps: int | None
) -> float:
    torch.set_num_threads(1)
    checkpoint = to_local(Path(folder))
    download(checkpoint, *POLICY_FILES)
    return action_error(checkpoint, held_out, ema, inference_steps)
