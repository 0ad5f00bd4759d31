"""Judges a checkpoint: `python -m imf_ray.evaluate checkpoint=DIR evaluate.episodes=100`."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from imf_ray.config import Config
from imf_ray.errors import UserError
from imf_ray.launch import absolute, connect, console, run
from imf_ray.resources import plan_simulators

if TYPE_CHECKING:
    from imf_ray.rollout.actors import RolloutJob
    from imf_ray.rollout.records import EpisodeRecord

JUDGES = ("evaluate.", "cluster.", "checkpoint=", "debug=")
"""What may be set here: the policy and the task are the checkpoint's."""


def main(config: Config, overrides: Sequence[str]) -> None:
    """Roll a checkpoint out on fixed seeds and print its success with its interval."""
    from imf_ray.agents.pretrained import load_config_of

    strangers = [override for override in overrides if not override.startswith(JUDGES)]
    if strangers:
        raise UserError(f"{strangers[0]} cannot be set here: it is part of the checkpoint.")
    if config.checkpoint is None:
        raise UserError("Name the checkpoint to judge: checkpoint=RUN/checkpoint_00001000")
    folder, evaluate = absolute(config.checkpoint), config.evaluate
    trained = load_config_of(folder)
    size = connect(config)
    from imf_ray.rollout.actors import RolloutJob, run_episodes
    from imf_ray.rollout.records import summarize
    from imf_ray.training.validation import rollout_settings

    settings = rollout_settings(trained, evaluate.seed, evaluate.stop_on_success)
    job = RolloutJob(str(folder), settings, ema=evaluate.ema)
    seeds = range(evaluate.seed, evaluate.seed + evaluate.episodes)
    actors, cpus = plan_simulators(config, size)
    episodes = run_episodes(job, seeds, actors, {"num_cpus": cpus}, _videos(config))
    total = evaluate.episodes
    records = list(track(episodes, "Episodes", total=total, console=console))
    summary = summarize(records)
    console.print(str(summary), soft_wrap=True)
    latency = statistics.median(record.timing["inference_ms_p50"] for record in records)
    console.print(f"inference {latency:.1f} ms a chunk (median, on the CPU)")
    error = _action_error(folder, evaluate.ema)
    if evaluate.output is not None:
        judgement = summary.metrics() | ({} if error is None else {"action_error": error})
        _write(absolute(evaluate.output), records, job, judgement)


def _action_error(folder: Path, ema: bool) -> float | None:
    """The error on the episodes held out of the checkpoint's training, where these are here."""
    from imf_ray.training.trainer import read_held_out
    from imf_ray.training.validation import action_error

    held_out = read_held_out(folder.parent)
    if not held_out:
        console.print("action error not known: no held-out episodes beside this checkpoint")
        return None
    error = action_error(folder, held_out, ema)
    console.print(f"action error {error:.4f} on {len(held_out)} held-out episodes")
    return error


def _write(path: Path, records: list[EpisodeRecord], job: RolloutJob, judgement: object) -> None:
    """The records as JSON lines, and beside them what was judged how, with what result."""
    from imf_ray.rollout.records import SUCCESS_RULE, write_records

    write_records(path, records)
    summary = {
        "judgement": judgement,
        "job": dataclasses.asdict(job),
        "success_rule": SUCCESS_RULE,
        "seeds": [record.seed for record in records],
    }
    beside = path.with_name(f"{path.stem}.summary.json")
    beside.write_text(json.dumps(summary, indent=1))
    console.print(f"Records: {path}\nSummary: {beside}", soft_wrap=True)


def _videos(config: Config) -> dict[int, str]:
    """Video files of the first episodes, by seed."""
    if config.evaluate.video is None:
        return {}
    path = absolute(config.evaluate.video)
    first = config.evaluate.seed
    seeds = range(first, first + min(config.evaluate.video_episodes, config.evaluate.episodes))
    return {seed: str(_numbered(path, seed, len(seeds))) for seed in seeds}


def _numbered(path: Path, seed: int, count: int) -> Path:
    return path if count == 1 else path.with_stem(f"{path.stem}_{seed}")


if __name__ == "__main__":
    sys.exit(run("imf_ray.evaluate", main, sys.argv[1:]))
