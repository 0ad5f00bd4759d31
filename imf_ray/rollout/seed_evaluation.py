"""A judgement: the seeds that were not judged yet are played, every record is kept at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imf_ray.allocation import RolloutResources
from imf_ray.files import write_atomically
from imf_ray.rollout.actor_pool import RolloutMetadata, RolloutSpec, run_episodes
from imf_ray.rollout.artifacts import TRAJECTORY, VIDEO, ArtifactRequest
from imf_ray.rollout.grid_video import VideoClip, failures_first, grid_video
from imf_ray.rollout.record_store import RecordStore, settings_hash
from imf_ray.rollout.records import EpisodeRecord

EVALUATIONS, TRAJECTORIES, GRID = "evaluations", "trajectories", "grid.mp4"
OnRecord = Callable[[EpisodeRecord], None]


class Evaluation:
    """One policy under one set of settings, on as many seeds as one asks for.

    Raises:
        UserError: `folder` holds another judgement.
    """

    def __init__(self, job: RolloutSpec, identity: RolloutMetadata, folder: Path) -> None:
        self.folder, self.identity = folder, identity
        self._job = job
        self.store = RecordStore(folder, identity.policy, identity.settings)

    def play(
        self,
        seeds: Sequence[int],
        simulators: RolloutResources,
        on_record: OnRecord,
        trajectories: bool = False,
    ) -> list[EpisodeRecord]:
        """The records of these seeds; what is missing is played.

        Args:
            on_record: called with every record, those that were there first.
            trajectories: keep `trajectories/seed_N/` of every episode.
        """
        wanted = self.store.missing(seeds)
        keep: dict[int, ArtifactRequest] = {}
        if trajectories:
            kept = [seed for seed in seeds if (self._trajectory(seed) / TRAJECTORY).is_file()]
            wanted = [seed for seed in seeds if seed in wanted or seed not in kept]
            keep = dict.fromkeys(wanted, ArtifactRequest(trajectory=True))
        for seed in seeds:
            if seed not in wanted:
                on_record(self.store.records[seed])
        for record, files in self._run(wanted, simulators, keep):
            self.store.add(record)
            for name, content in files.items():
                write_atomically(self._trajectory(record.seed) / name, content)
            on_record(record)
        return [self.store.records[seed] for seed in seeds]

    def film(
        self, records: Sequence[EpisodeRecord], limit: int, simulators: RolloutResources
    ) -> Path | None:
        """Play the first `limit` of these episodes again, failures first, into one grid video.

        Judging is not slowed down by pictures that nobody asked for; an episode is a function of
        its seed, so that it can be shown afterwards.

        Returns:
            The file, or None when no episode could be shown.
        """
        shown = [record for record in failures_first(records) if record.error is None][:limit]
        keep = {record.seed: ArtifactRequest(video=True) for record in shown}
        played = {p.record.seed: p for p in self._run(list(keep), simulators, keep)}
        again = [played[seed] for seed in keep]
        # An episode may end in an error this time, or its simulator.
        clips = [VideoClip(p.record, p.files[VIDEO]) for p in again if VIDEO in p.files]
        if not clips:
            return None
        path = self.folder / GRID
        write_atomically(path, grid_video(clips))
        return path

    def _run(
        self, seeds: Sequence[int], simulators: RolloutResources, keep: Mapping[int, ArtifactRequest]
    ) -> Any:
        return run_episodes(self._job, seeds, simulators, keep)

    def _trajectory(self, seed: int) -> Path:
        return self.folder / TRAJECTORIES / f"seed_{seed}"


def evaluation_dir(beside: Path, name: str, policy: str, settings: Mapping[str, Any]) -> Path:
    """Where the records of a policy belong: `beside/evaluations/NAME-KEY`."""
    return beside / EVALUATIONS / f"{name}-{settings_hash(policy, settings)}"


def store_records(beside: Path, name: str, records: Sequence[EpisodeRecord]) -> None:
    """Store the records of one policy where an evaluation would."""
    policy, settings = records[0].policy, records[0].settings
    store = RecordStore(evaluation_dir(beside, name, policy, settings), policy, settings)
    for record in records:
        store.add(record)
    store.finish([record.seed for record in records])
