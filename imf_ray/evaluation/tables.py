"""What a judgement shows: its progress with the running success, and its tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from imf_ray.allocation import RolloutResources
from imf_ray.evaluation.candidates import Candidate
from imf_ray.rollout.confidence_intervals import wilson_interval
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.storage import display_path

NAME_WIDTH = 36
LINES = 10
"""Lines of progress where there is no terminal to draw a bar on."""


class EpisodeProgress:
    """The progress of a judgement: call it with every record, inside a `with` block."""

    def __init__(self, name: str, episodes: int, console: Console) -> None:
        self._name, self._episodes, self._console = name, episodes, console
        self._records: list[EpisodeRecord] = []
        self._started = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=episodes, text="")

    def __call__(self, record: EpisodeRecord) -> None:
        """Count a finished episode."""
        self._records.append(record)
        done = len(self._records)
        successes = sum(record.success for record in self._records)
        low, high = wilson_interval(successes, done)
        text = f"success {successes / done:.2f} [{low:.2f}, {high:.2f}]"
        failed = sum(record.error is not None for record in self._records)
        text += f", {failed} failed" if failed else ""
        self._bar.update(self._task, completed=done, text=text)
        every = max(1, self._episodes // LINES)
        if not self._console.is_terminal and (done % every == 0 or done == self._episodes):
            self._console.print(f"{self._name}: {done}/{self._episodes}, {text}")

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started

    def __enter__(self) -> EpisodeProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bar.stop()


def evaluate_with_progress(
    contender: Candidate, seeds: Sequence[int], simulators: RolloutResources, console: Console
) -> list[EpisodeRecord]:
    """The records of these seeds, with the progress of those that must be played."""
    missing = contender.judgement.store.missing(seeds)
    if len(missing) < len(seeds):
        there, where = len(seeds) - len(missing), display_path(contender.judgement.folder)
        console.print(f"{there} of {len(seeds)} episodes are in {where}", soft_wrap=True)
    with EpisodeProgress(contender.name, len(seeds), console) as progress:
        records = contender.play(seeds, simulators, progress)
    steps = sum(record.steps for record in records if record.seed in set(missing))
    if steps:
        console.print(f"{steps / progress.elapsed_s:.0f} steps/s on {simulators}")
    return records


def outcome_table(judged: Sequence[tuple[str, Sequence[EpisodeRecord]]], title: str) -> Table:
    """One row a policy: success with its interval, reward, stages, latency of a chunk."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    stages = range(1, max(record.num_stages for _, records in judged for record in records) + 1)
    heads = " ".join(f">={stage} " for stage in stages)
    table.add_column("policy", overflow="fold", max_width=NAME_WIDTH)
    for column in ("success", "n", "reward", heads, "p50 ms", "p95 ms"):
        table.add_column(column, no_wrap=True)
    for name, records in judged:
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


def latency(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Milliseconds of a call for a chunk: medians over the episodes of their percentiles."""
    names = ("inference_ms_p50", "inference_ms_p95")
    found = {name: [r.timing[name] for r in records if name in r.timing] for name in names}
    return {name: statistics.median(values) for name, values in found.items() if values}


def _latency(records: Sequence[EpisodeRecord]) -> list[str]:
    return [f"{value:.1f}" for value in latency(records).values()]
