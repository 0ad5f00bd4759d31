"""What makes a run the same run: its configuration and the contents of its episodes.

Nothing here imports torch or Ray, so that a run that is already finished says so at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_ray.config import config_from_dict, config_to_dict, to_yaml
from imf_ray.data.index import EpisodeIndex, build_index
from imf_ray.data.sampling import SamplePlan, choose_virtual_shards
from imf_ray.errors import UserError
from imf_ray.files import retry_io
from imf_ray.schema import Config, resumable_options
from imf_ray.training.data_identity import describe_changed_episodes
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_records import DataManifest


@dataclass(frozen=True)
class PreparedRun:
    """A configuration that was checked, with its data and the plan of its batches."""

    config: Config
    train: EpisodeIndex
    val: EpisodeIndex
    plan: SamplePlan

    def describe(self) -> str:
        """Describe the data and the length of the run in one line."""
        epochs = self.config.train.max_steps / self.plan.steps_per_epoch
        num_skipped = len(self.train.skipped)
        skipped = f", {num_skipped} invalid ones skipped" if num_skipped else ""
        return (
            f"{len(self.train.episodes)} episodes for training, {len(self.val.episodes)} for "
            f"validation{skipped}; {self.plan.num_samples} samples, {self.plan.steps_per_epoch} "
            f"training steps per epoch; {self.config.train.max_steps} steps = {epochs:.1f} epochs"
        )


def load_run(config: Config) -> PreparedRun:
    """Index the data and plan the batches of a configuration that `prepare_run` has checked.

    Raises:
        UserError: the data or the batch size are invalid.
    """
    train, val = build_index(config).split(config.train.val_split, config.train.seed)
    plan = SamplePlan(
        lengths=tuple(episode.length for episode in train.episodes),
        batch_size=config.train.batch_size,
        virtual_shards=choose_virtual_shards(
            config.train.batch_size, config.cluster.num_workers, config.data.virtual_shards
        ),
        read_block_steps=config.data.read_block_steps,
        shuffle_buffer_blocks=config.data.shuffle_buffer_blocks,
        seed=config.train.seed,
    )
    return PreparedRun(config, train, val, plan)


def init_or_verify_run_dir(run: PreparedRun, run_dir: RunDir) -> SamplePlan:
    """Create the run's folder, or check that it belongs to the same run; return its sample plan.

    The data set may have been moved. The folder then gets its new path.

    The number of virtual shards is fixed at the run's first launch. Batches therefore stay the same
    when the number of workers changes.

    Raises:
        UserError: the folder belongs to a run with another configuration or other data.
    """
    config, plan = run.config, run.plan
    episodes = [[Path(e.path).name, e.length, e.content_hash] for e in run.train.episodes]
    val_episodes = [episode.ref for episode in run.val.episodes]
    current = DataManifest(episodes, plan.virtual_shards, val_episodes)
    manifest = retry_io(run_dir.read_data_manifest)
    if run_dir.exists and manifest is not None:
        # Options that did not exist at the first launch get their defaults.
        stored = config_from_dict(retry_io(run_dir.read_config))
        changes = _config_diff(config_to_dict(stored), config_to_dict(config))
        if (stored.train.init_from is None) != (config.train.init_from is None):
            changes.append(
                f"train.init_from was {stored.train.init_from} and is {config.train.init_from}"
            )
        changed_episodes = describe_changed_episodes(manifest, current)
        if changed_episodes is not None:
            changes.append(f"in data.dataset_dir={config.data.dataset_dir} {changed_episodes}")
        if changes:
            raise UserError(
                f"The run {run_dir} was started with other settings: {'; '.join(changes)}. "
                "Choose another run_name, or resume it with the same settings."
            )
        shards = choose_virtual_shards(
            config.train.batch_size, config.cluster.num_workers, manifest.virtual_shards
        )
        plan = dataclasses.replace(plan, virtual_shards=shards)
    run_dir.write_config(to_yaml(config))
    run_dir.write_data_manifest(dataclasses.replace(current, virtual_shards=plan.virtual_shards))
    return plan


def _config_diff(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Return a line per difference of two configurations, except in `resumable_options`."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            change
            for key in after
            if f"{prefix}{key}" not in resumable_options()
            for change in _config_diff(before.get(key), after[key], f"{prefix}{key}.")
        ]
    return [] if before == after else [f"{prefix[:-1]} was {before} and is {after}"]


def is_finished(run_dir: RunDir, config: Config) -> bool:
    """Return True if a run has made its last update, and every due validation succeeded.

    A run whose validation failed is not finished, because its next start repeats the validation.
    The folder may belong to a run with another configuration or other data.
    """
    if run_dir.newest_step() != config.train.max_steps:
        return False
    checkpoints = run_dir.list_checkpoints()
    is_last_valid = bool(checkpoints) and checkpoints[-1].step == config.train.max_steps
    if not is_last_valid or (config.train.validates and not checkpoints[-1].has_validation):
        return False
    return not any(c.has_validation and not c.validation_succeeded for c in checkpoints)
