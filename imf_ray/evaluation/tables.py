"""Console output of an evaluation: progress with the running success rate, and tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from rich import box
from rich.table import Table

from imf_ray.allocation import RolloutResources
from imf_ray.evaluation.candidates import Candidate
from imf_ray.rollout.confidence_intervals import wilson_interval
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.storage import display_path
from imf_ray.terminal import ProgressBars, console

NAME_WIDTH = 36
"""Columns of a policy's name, after which it is wrapped."""
PLAIN_LINES = 10
"""Progress lines of an evaluation if there is no terminal for a bar."""


def evaluate_with_progress(
    candidate: Candidate, seeds: Sequence[int], resources: RolloutResources
) -> list[EpisodeRecord]:
    """Return the records of these seeds; show the progress of the episodes that must be run."""
    missing = set(candidate.evaluation.store.missing(seeds))
    if len(missing) < len(seeds):
        stored, folder = len(seeds) - len(missing), display_path(candidate.evaluation.folder)
        console.print(f"{stored} of {len(seeds)} episodes are in {folder}", soft_wrap=True)
    start = time.perf_counter()
    finished: list[EpisodeRecord] = []
    with ProgressBars(lines=PLAIN_LINES) as bars:

        def show(record: EpisodeRecord) -> None:
            finished.append(record)
            bars.update(candidate.name, len(finished), len(seeds), _running_success(finished))

        records = candidate.run(seeds, resources, show)
    steps = sum(record.steps for record in records if record.seed in missing)
    if steps:
        elapsed_s = time.perf_counter() - start
        console.print(f"{steps / elapsed_s:.0f} steps/s on {resources}")
    return records


def _running_success(records: Sequence[EpisodeRecord]) -> str:
    successes = sum(record.success for record in records)
    low, high = wilson_interval(successes, len(records))
    failed = sum(record.error is not None for record in records)
    suffix = f", {failed} failed" if failed else ""
    return f"success {successes / len(records):.2f} [{low:.2f}, {high:.2f}]{suffix}"


def outcome_table(results: Sequence[tuple[str, Sequence[EpisodeRecord]]], title: str) -> Table:
    """Make a table with one row per policy.

    Columns: success with its interval, reward, stages, and latency of a chunk.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    stages = range(1, max(record.num_stages for _, records in results for record in records) + 1)
    stage_header = " ".join(f">={stage} " for stage in stages)
    table.add_column("policy", overflow="fold", max_width=NAME_WIDTH)
    for column in ("success", "n", "reward", stage_header, "p50 ms", "p95 ms"):
        table.add_column(column, no_wrap=True)
    for name, records in results:
        summary = summarize(records)
        interval = f"[{summary.success_ci_low:.2f}, {summary.success_ci_high:.2f}]"
        shares = [summary.stage_shares.get(stage, 0.0) for stage in stages]
        table.add_row(
            name,
            f"{summary.success_rate:.2f} {interval}",
            str(summary.episodes),
            f"{summary.return_mean:.1f}",
            " ".join(f"{share:.2f}" for share in shares),
            *_latency(records),
        )
    return table


def latency(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Return milliseconds of a call for a chunk: medians over episodes of their percentiles."""
    names = ("inference_ms_p50", "inference_ms_p95")
    values = {name: [r.timing[name] for r in records if name in r.timing] for name in names}
    return {name: statistics.median(values[name]) for name in names if values[name]}


def _latency(records: Sequence[EpisodeRecord]) -> list[str]:
    return [f"{value:.1f}" for value in latency(records).values()]
