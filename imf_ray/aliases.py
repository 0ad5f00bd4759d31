"""Old names that earlier versions wrote to disk or accepted on the command line.

These are the only tables of old names. Readers of configurations, records and metrics use them to
translate old names. Writers use only the new names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from imf_ray.errors import UserError

Notify = Callable[[str, str], None]
"""Callback that gets the old and the new name of each translated option or value."""

OPTIONS = {
    "agent.condition": "agent.conditioning",
    "agent.draws_per_observation": "agent.noise_samples_per_obs",
    "agent.pose_loss_weight": "agent.aux_pose_loss_weight",
    "agent.pose_objects": "agent.privileged_pose_objects",
    "agent.target_pose_objects": "agent.aux_pose_objects",
    "cluster.dashboard": "cluster.include_dashboard",
    "cluster.max_nodes": "cluster.autoscale_max_nodes",
    "cluster.pool_label": "cluster.node_pool_label",
    "cluster.rollout_actors": "cluster.num_rollout_actors",
    "collect.compress": "collect.gzip_images",
    "collect.episodes": "collect.num_episodes",
    "compare.oracles": "compare.baselines",
    "compare.output": "compare.output_dir",
    "data.chunk_steps": "data.read_block_steps",
    "data.pool_chunks": "data.shuffle_buffer_blocks",
    "data.resize": "data.resize_images",
    "evaluate.allow_mismatch": "evaluate.allow_task_mismatch",
    "evaluate.compute_batch": "evaluate.inference_batch_size",
    "evaluate.ema": "evaluate.use_ema_weights",
    "evaluate.episode_limit_s": "evaluate.episode_timeout_s",
    "evaluate.episodes": "evaluate.num_episodes",
    "evaluate.output": "evaluate.output_dir",
    "evaluate.select": "evaluate.checkpoint_selection",
    "evaluate.select_episodes": "evaluate.selection_episodes",
    "evaluate.select_seed": "evaluate.selection_seed",
    "evaluate.trajectories": "evaluate.save_trajectories",
    "evaluate.video_episodes": "evaluate.max_video_episodes",
    "task.adapter.progress": "task.adapter.progress_signal",
    "task.adapter.stages": "task.adapter.stage_thresholds",
    "task.adapter.success_rule": "task.adapter.success_description",
    "task.adapter.world": "task.adapter.env_class",
    "train.accumulate_batches": "train.gradient_accumulation_steps",
    "train.autocast": "train.encoder_precision",
    "train.keep_last": "train.keep_last_k",
    "train.log_samples": "train.log_sample_ids",
    "tune.cpus_per_trial": "tune.min_cpus_per_trial",
}
"""Dotted names of options: old to new."""

VALUES: dict[str, dict[str, str]] = {
    "agent.time_sampler": {"corner": "endpoint_mix"},
    "task.adapter.env_class": {
        "imf_ray.sim.adapter:AdaptedWorld": "imf_ray.sim.gym_adapter:AdaptedEnv",
        "imf_ray.sim.aloha:AlohaWorld": "imf_ray.sim.tasks.aloha:AlohaEnv",
    },
    "train.encoder_precision": {"none": "fp32"},
}
"""Values of options, by the option's new name: old to new."""

METRICS = {
    "bad_episodes": "skipped_episodes",
    "checkpoint_fallbacks": "invalid_checkpoints_skipped",
    "data_wait": "data_wait_frac",
    "grad_clipped": "grad_clip_frac",
    "rollout/reward_sum": "rollout/return_mean",
    "rollout/success_high": "rollout/success_ci_high",
    "rollout/success_low": "rollout/success_ci_low",
}
"""Metrics in `metrics.jsonl`, `validations.jsonl`, checkpoints and sweeps, old to new."""

RECORD_FIELDS = {"reward_sum": "episode_return"}
"""Fields of an `EpisodeRecord`, old to new."""

RECORD_SETTINGS = {
    "compute_batch": "inference_batch_size",
    "ema": "use_ema_weights",
    "pose_objects": "privileged_pose_objects",
    "success_rule": "success_description",
}
"""Keys of an `EpisodeRecord`'s settings, old to new."""

TRIAL_FIELDS = {"unjudged": "failed_validation_steps"}
"""Fields of a `TrialRecord`, old to new."""

SWEEP_KEYS = {"begun": "started_at", "oracles": "baselines"}
"""Keys of a sweep's `space.json` and `sweep.json`, old to new."""

BASELINES_FILES = ("oracles.json",)
"""Old names of a sweep's `baselines.json`."""

EPISODE_REF_FIELDS = {"digest": "content_hash", "stamp": "fingerprint"}
"""Fields of an `EpisodeRef` in a run's `data.json`, old to new."""

DATA_STATE_KEYS = {
    "chunk_steps": "read_block_steps",
    "pool_chunks": "shuffle_buffer_blocks",
}
"""Keys of the data position that a checkpoint stores, old to new."""

STATE_DICT_PREFIXES = {"pose_readout.": "pose_head."}
"""Prefixes of a checkpoint's weights, old to new."""


def rename_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of `values` with renamed keys; keys that are not in `names` are unchanged.

    Args:
        names: old keys and their new names.

    Raises:
        ValueError: a key is given under both its old and its new name.
    """
    if names.keys().isdisjoint(values):  # most often; twice as fast
        return {**values}
    renamed = {names.get(key, key): value for key, value in values.items()}
    if len(renamed) < len(values):
        duplicates = sorted(old for old, new in names.items() if old in values and new in values)
        raise ValueError(f"given under both the old and the new name: {', '.join(duplicates)}")
    return renamed


def rename_options(
    values: Mapping[str, Any], notify: Notify | None = None, prefix: str = ""
) -> dict[str, Any]:
    """Return a copy of options under their current names and with their current values.

    Args:
        values: options as nested sections, under dotted names, or both.
        notify: called for each translated name or value.
        prefix: dotted name of the section `values`, with a dot at its end; empty at the top level.

    Raises:
        UserError: an option is given under both its old and its new name.
    """
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        new = rename_option(key, notify)
        new_name = new.removeprefix(prefix)
        if new != key and new_name in values:
            raise UserError(f"{new} is also given under its old name. Remove {key}.")
        if new in VALUES:
            value = rename_value(new, value, notify)
        elif isinstance(value, Mapping):
            value = rename_options(value, notify, f"{new}.")
        renamed[new_name] = value
    return renamed


def rename_overrides(overrides: Iterable[str], notify: Notify | None = None) -> list[str]:
    """Return `key=value` overrides under their current names and with their current values.

    Raises:
        UserError: an option is given under both its old and its new name.
    """
    overrides = list(overrides)
    keys = {item.partition("=")[0] for item in overrides}
    renamed = []
    for item in overrides:
        key, separator, value = item.partition("=")
        new = rename_option(key)
        if new != key and new in keys:
            raise UserError(f"{new} is also given under its old name. Remove {key}.")
        current = rename_value(new, value)
        renamed.append(f"{new}{separator}{current}")
        if notify is not None and renamed[-1] != item:
            notify(*((item, renamed[-1]) if current != value else (key, new)))
    return renamed


def rename_option(key: str, notify: Notify | None = None) -> str:
    """Return the current name of an option."""
    new = OPTIONS.get(key, key)
    if new != key and notify is not None:
        notify(key, new)
    return new


def rename_value(key: str, value: Any, notify: Notify | None = None) -> Any:
    """Return the current value of the option `key`. Lists and mappings are translated by item."""
    if isinstance(value, Mapping):
        return {name: rename_value(key, item, notify) for name, item in value.items()}
    if isinstance(value, list):
        return [rename_value(key, item, notify) for item in value]
    new = VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value
    if new != value and notify is not None:
        notify(f"{key}={value}", f"{key}={new}")
    return new
