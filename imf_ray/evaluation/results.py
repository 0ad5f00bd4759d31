"""What an evaluation prints and writes at its end."""

from __future__ import annotations

from collections.abc import Sequence

from imf_ray.allocation import RolloutResources
from imf_ray.evaluation.candidates import Candidate
from imf_ray.evaluation.tables import latency, outcome_table, report_action_error
from imf_ray.folders import display
from imf_ray.progress_bars import ProgressBars
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.storage import authoritative_path, display_path
from imf_ray.terminal import console

VIDEO_LINES = 5
"""Number of progress lines of a grid video if stdout is not a terminal."""


def report_evaluation(
    candidate: Candidate, records: list[EpisodeRecord], actors: RolloutResources
) -> None:
    """Print the results of an evaluation and write its summary and video."""
    evaluate, evaluation = candidate.config.evaluate, candidate.evaluation
    seeds = [record.seed for record in records]
    console.print(str(summarize(records)), soft_wrap=True)
    title = (
        f"Seeds {seeds[0]}-{seeds[-1]}; success means: {records[0].settings['success_description']}"
    )
    console.print(outcome_table([(candidate.name, records)], title))
    for record in (record for record in records if record.error is not None):
        console.print(f"Error on seed {record.seed}: {record.error}", soft_wrap=True)
    action_error = report_action_error(candidate)
    evaluation.store.finalize(seeds, action_error=action_error, latency=latency(records))
    if evaluate.video != "none":
        requested = [r for r in records if evaluate.video == "all" or not r.success]
        with ProgressBars(lines=VIDEO_LINES) as bars:
            path = evaluation.write_grid_video(
                requested,
                evaluate.max_video_episodes,
                actors,
                on_video=lambda ready, total: bars.update("Videos of episodes", ready, total),
            )
        reason = f"none, because no episode matches evaluate.video={evaluate.video}"
        video = reason if path is None else display_path(path)
        console.print(f"Video: {video}", soft_wrap=True)
    console.print(f"Records: {display_path(evaluation.folder)}", soft_wrap=True)


def next_command(candidate: Candidate, records: Sequence[EpisodeRecord]) -> str:
    """Return the arguments of a command that may follow an evaluation."""
    if candidate.checkpoint is None:
        return f"report {display(authoritative_path(candidate.evaluation.folder))}"
    checkpoint = display(authoritative_path(candidate.checkpoint))
    video = candidate.config.evaluate.video
    if video == "none" and not all(record.success for record in records):
        return f"evaluate {checkpoint} evaluate.num_episodes={len(records)} evaluate.video=failures"
    return f"export {checkpoint} my_policy"
