"""Evaluates a policy on given seeds. Episodes that have a stored record are not repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imf_ray.allocation import RolloutResources
from imf_ray.files import write_atomically
from imf_ray.rollout.actor_pool import RolloutSpec, run_episodes
from imf_ray.rollout.artifacts import TRAJECTORY, VIDEO, ArtifactRequest
from imf_ray.rollout.episode_runner import EpisodeResult
from imf_ray.rollout.grid_video import TILE_FORMAT, VideoClip, failures_first, grid_video
from imf_ray.rollout.policy_fit import check_rendering
from imf_ray.rollout.record_store import (
    EVALUATIONS_DIR,
    GRID_VIDEO,
    RecordStore,
    settings_hash,
)
from imf_ray.rollout.records import EpisodeRecord, RolloutMetadata

TRAJECTORIES_DIR = "trajectories"
OnRecord = Callable[[EpisodeRecord], None]


class Evaluation:
    """Evaluates one policy under one set of settings and stores the records in `folder`.

    Episodes are run inside `with evaluation.store.claimed()`.

    Raises:
        UserError: `folder` has records of another evaluation.
    """

    def __init__(self, spec: RolloutSpec, metadata: RolloutMetadata, folder: Path) -> None:
        self.folder, self.metadata = folder, metadata
        self._spec = spec
        self._videos: dict[int, bytes] = {}  # by seed
        self.store = RecordStore(folder, metadata.policy, metadata.settings)

    def run(
        self,
        seeds: Sequence[int],
        resources: RolloutResources,
        on_record: OnRecord,
        save_trajectories: bool = False,
        num_videos: int = 0,
    ) -> list[EpisodeRecord]:
        """Run the episodes that have no record yet, and return the records of all seeds.

        Args:
            on_record: called with every record: first with the stored ones, then with each new one
                when its episode ends.
            save_trajectories: write the trajectory of every episode to `trajectories/seed_N/`. An
                episode with a record but without a trajectory is repeated.
            num_videos: record the first episodes on video while they run, for `grid_video`.
        """
        to_run = self._missing(seeds, save_trajectories)
        for seed in seeds:
            if seed not in to_run:
                on_record(self.store.records[seed])
        remaining_seeds = [seed for seed in seeds if seed in to_run]
        artifacts = {
            seed: ArtifactRequest(TILE_FORMAT if number < num_videos else None, save_trajectories)
            for number, seed in enumerate(remaining_seeds)
        }
        for result in self._run(remaining_seeds, resources, artifacts):
            record = result.record
            self.store.add(record)
            for name, content in result.files.items():
                if name == VIDEO:
                    self._videos[record.seed] = content
                else:
                    write_atomically(self._trajectory_dir(record.seed) / name, content)
            on_record(record)
        return [self.store.records[seed] for seed in seeds]

    def check_rendering(self, seeds: Sequence[int], save_trajectories: bool, video: bool) -> None:
        """Check that this machine can render what the missing episodes and a video need.

        Raises:
            UserError: this machine cannot render.
        """
        if video or self._missing(seeds, save_trajectories):
            check_rendering(self._spec.config, overview=video or save_trajectories)

    def write_grid_video(
        self,
        records: Sequence[EpisodeRecord],
        max_episodes: int,
        resources: RolloutResources,
        on_video: Callable[[int, int], None],
    ) -> Path | None:
        """Write a grid video of up to `max_episodes` of these episodes, failures first.

        Episodes that were not recorded when they ran are repeated, with the same result.

        Args:
            on_video: called with the number of videos that are ready, and that of all.

        Returns:
            The path of the video, or None if no episode could be recorded.
        """
        selected = [r for r in failures_first(records) if r.error is None][:max_episodes]
        seeds = [record.seed for record in selected]
        if not seeds:
            return None
        to_repeat = [seed for seed in seeds if seed not in self._videos]
        artifacts = dict.fromkeys(to_repeat, ArtifactRequest(TILE_FORMAT))
        num_ready = len(seeds) - len(to_repeat)
        on_video(num_ready, len(seeds))
        for num_repeated, result in enumerate(self._run(to_repeat, resources, artifacts), start=1):
            if VIDEO in result.files:  # not if it ends in an error this time
                self._videos[result.record.seed] = result.files[VIDEO]
            on_video(num_ready + num_repeated, len(seeds))
        clips = [
            VideoClip(record, self._videos[record.seed], speed=TILE_FORMAT.speed)
            for record in selected
            if record.seed in self._videos
        ]
        if not clips:
            return None
        path = self.folder / GRID_VIDEO
        write_atomically(path, grid_video(clips))
        return path

    def _run(
        self,
        seeds: Sequence[int],
        resources: RolloutResources,
        artifacts: Mapping[int, ArtifactRequest],
    ) -> Iterator[EpisodeResult]:
        return run_episodes(self._spec, seeds, resources, artifacts)

    def _missing(self, seeds: Sequence[int], save_trajectories: bool) -> set[int]:
        """Return the seeds without a record, or without a requested trajectory."""
        missing = set(self.store.missing(seeds))
        if save_trajectories:
            missing |= {
                seed for seed in seeds if not (self._trajectory_dir(seed) / TRAJECTORY).is_file()
            }
        return missing

    def _trajectory_dir(self, seed: int) -> Path:
        return self.folder / TRAJECTORIES_DIR / f"seed_{seed}"


def evaluation_dir(parent: Path, name: str, policy: str, settings: Mapping[str, Any]) -> Path:
    """Return the folder of a policy's records: `parent/evaluations/NAME-HASH`."""
    return parent / EVALUATIONS_DIR / f"{name}-{settings_hash(policy, settings)}"


def store_records(parent: Path, name: str, records: Sequence[EpisodeRecord]) -> None:
    """Store the records of one policy where an `Evaluation` with the same settings reads them.

    Args:
        parent: the folder of the run.
        name: the name of the policy's records folder, before the hash.
        records: at least one record, all of the same policy and settings.

    Raises:
        ClaimedError: a process evaluates this policy under these settings.
    """
    policy, settings = records[0].policy, records[0].settings
    store = RecordStore(evaluation_dir(parent, name, policy, settings), policy, settings)
    with store.claimed():
        for record in records:
            store.add(record)
        store.finalize([record.seed for record in records])
