"""Judges a checkpoint: `python -m imf_ray.evaluate checkpoint=DIR evaluate.episodes=100`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from imf_ray.config import Config
from imf_ray.errors import UserError
from imf_ray.launch import absolute, connect, console, run
from imf_ray.resources import plan_simulators


def main(config: Config, overrides: Sequence[str]) -> None:
    """Roll a checkpoint out on fixed seeds and print its success with its interval."""
    if config.checkpoint is None:
        raise UserError("Name the checkpoint to judge: checkpoint=RUN/checkpoint_00001000")
    folder = absolute(config.checkpoint)
    evaluate = config.evaluate
    if evaluate.episodes < 1:
        raise UserError(f"evaluate.episodes={evaluate.episodes} must be at least 1.")
    from imf_ray.agents.pretrained import load_config_of

    trained = load_config_of(folder)
    size = connect(config)
    from imf_ray.rollout.actors import RolloutJob, run_episodes
    from imf_ray.rollout.records import summarize, write_records
    from imf_ray.training.validation import rollout_settings

    trained.evaluate = evaluate
    settings = rollout_settings(trained, evaluate.seed)
    job = RolloutJob(str(folder), settings, ema=evaluate.ema)
    seeds = range(evaluate.seed, evaluate.seed + evaluate.episodes)
    actors, cpus = plan_simulators(config, size)
    records = list(
        track(
            run_episodes(job, seeds, actors, {"num_cpus": cpus}, _videos(config)),
            "Episodes",
            total=evaluate.episodes,
            console=console,
        )
    )
    summary = summarize(records)
    console.print(str(summary), soft_wrap=True)
    latency = [record.timing["inference_ms_p50"] for record in records]
    console.print(f"inference p50 {sorted(latency)[len(latency) // 2]:.1f} ms on the CPU")
    if evaluate.output is not None:
        output = absolute(evaluate.output)
        write_records(output, records)
        output.with_suffix(".json").write_text(json.dumps(summary.metrics(), indent=1))
        console.print(f"Records: {output}", soft_wrap=True)


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
