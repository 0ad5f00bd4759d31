"""Console output of an evaluation: progress, tables and the action error."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence

from imf_ray.allocation import RolloutResources
from imf_ray.errors import UserError
from imf_ray.evaluation.candidates import Candidate
from imf_ray.progress_bars import ProgressBars
from imf_ray.rollout.confidence_intervals import wilson_interval
from imf_ray.rollout.records import EpisodeRecord, describe_success, summarize
from imf_ray.storage import display_path
from imf_ray.tables import Column, FittedTable
from imf_ray.terminal import console
from imf_ray.training.action_error import measure_action_errors
from imf_ray.training.progress import describe_action_errors
from imf_ray.training.run_dir import RunDir

PLAIN_LINES = 10
"""Number of progress lines of an evaluation if stdout is not a terminal."""


def evaluate_with_progress(
    candidate: Candidate, seeds: Sequence[int], resources: RolloutResources, num_videos: int = 0
) -> list[EpisodeRecord]:
    """Return the records of these seeds, and run and show the episodes that have none yet.

    A progress bar shows the success rate so far. A line at the end shows the throughput.

    Args:
        num_videos: see `Evaluation.run`.
    """
    missing = set(candidate.evaluation.store.missing(seeds))
    if len(missing) < len(seeds):
        num_stored, folder = len(seeds) - len(missing), display_path(candidate.evaluation.folder)
        console.print(
            f"{num_stored} of {len(seeds)} episodes are already recorded in {folder}",
            soft_wrap=True,
        )
    start = time.perf_counter()
    finished: list[EpisodeRecord] = []
    with ProgressBars(lines=PLAIN_LINES) as bars:

        def show(record: EpisodeRecord) -> None:
            finished.append(record)
            bars.update(candidate.name, len(finished), len(seeds), _running_success(finished))

        bars.start(candidate.name, len(seeds), "starting rollout actors")
        records = candidate.run(seeds, resources, show, num_videos)
    num_steps = sum(record.steps for record in records if record.seed in missing)
    if num_steps:
        elapsed_s = time.perf_counter() - start
        console.print(f"{num_steps / elapsed_s:.0f} environment steps/s on {resources}")
    return records


def _running_success(records: Sequence[EpisodeRecord]) -> str:
    """Return the success rate so far, such as 'success 0.75 [0.60, 0.86], 1 failed'."""
    successes = sum(record.success for record in records)
    low, high = wilson_interval(successes, len(records))
    failed = sum(record.error is not None for record in records)
    suffix = f", {failed} failed" if failed else ""
    return f"success {successes / len(records):.2f} [{low:.2f}, {high:.2f}]{suffix}"


def outcome_table(
    results: Sequence[tuple[str, Sequence[EpisodeRecord]]], title: str
) -> FittedTable:
    """Make a table with one row per policy.

    Columns: success rate with its 95 % confidence interval, number of episodes, mean summed reward,
    share of episodes that reached each stage, and latency of predicting a chunk.
    """
    stages = range(1, max(record.num_stages for _, records in results for record in records) + 1)
    summaries = [summarize(records) for _, records in results]
    columns = {
        "success": [describe_success(summary.metrics()) or "" for summary in summaries],
        "n": [str(summary.episodes) for summary in summaries],
        "reward": [f"{summary.return_mean:.1f}" for summary in summaries],
        " ".join(f">={stage} " for stage in stages).rstrip(): [
            " ".join(f"{summary.stage_shares.get(stage, 0.0):.2f}" for stage in stages)
            for summary in summaries
        ],
        "p50/p95 ms": [
            "/".join(f"{value:.1f}" for value in latency(records).values())
            for _, records in results
        ],
    }
    names = Column("policy", [name for name, _ in results], is_name=True)
    return FittedTable([names, *itertools.starmap(Column, columns.items())], title)


def latency(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Return the latency of predicting a chunk, in milliseconds.

    `inference_ms_p50` and `inference_ms_p95` are the medians over episodes of the episodes' own
    percentiles. A percentile that no episode has is left out.
    """
    names = ("inference_ms_p50", "inference_ms_p95")
    values = {name: [r.timing[name] for r in records if name in r.timing] for name in names}
    return {name: statistics.median(values[name]) for name in names if values[name]}


def report_action_error(candidate: Candidate) -> float | None:
    """Print and return the action error on the episodes held out of the checkpoint's training.

    Returns None, and prints the reason if there is one, if it cannot be computed: the policy is
    not a checkpoint, its run has no held-out episodes, or the episodes have changed.
    """
    if candidate.checkpoint is None:
        return None
    try:
        data = candidate.config.data
        val_episodes = RunDir(candidate.checkpoint.parent).find_val_episodes(data)
        if not val_episodes:
            raise UserError("the run folder of this checkpoint has no held-out episodes")
        options = candidate.config.evaluate
        errors = measure_action_errors(
            candidate.checkpoint, val_episodes, options.use_ema_weights, options.inference_steps
        )
    except UserError as reason:  # for example, the episodes have changed; the rollouts still count
        console.print(f"Action error: unknown, because {reason}", soft_wrap=True)
        return None
    console.print(
        f"Action error (mean absolute, normalized): {errors.normalized:.4f} on "
        f"{len(val_episodes)} held-out episodes",
        soft_wrap=True,
    )
    console.print(describe_action_errors(errors.metrics()), soft_wrap=True)
    return errors.normalized
