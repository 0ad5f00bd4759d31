"""Trains one policy: `python -m imf_ray.train agent=... data.dataset_dir=DIR`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from imf_ray.config import Config
from imf_ray.launch import absolute, connect, console, run
from imf_ray.resources import plan_run


def main(config: Config) -> None:
    """Train one policy, or go on with the run that `run_name` names."""
    config.data.dataset_dir = str(absolute(config.data.dataset_dir))
    name = config.run_name or f"{config.agent.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = absolute(config.storage_path) / name
    size = connect(config)
    from imf_ray.training.trainer import describe, fit, prepare_run

    resources = plan_run(config, size)
    prepared = prepare_run(config, run_dir)
    console.print(f"{describe(prepared)}\nThis takes {resources}")
    console.print(f"Run: {run_dir} (go on with it by run_name={name})", soft_wrap=True)
    outcome = fit(prepared, resources)
    if outcome.checkpoints:
        best, metrics = outcome.best()
        _print_best(Path(best), metrics)


def _print_best(path: Path, metrics: dict[str, object]) -> None:
    console.print(f"Best checkpoint: {path}", soft_wrap=True)
    for name in ("action_error", "rollout/success_rate", "rollout/reward_sum", "validation_error"):
        if name in metrics:
            console.print(f"  {name}: {metrics[name]}")


if __name__ == "__main__":
    sys.exit(run("imf_ray.train", main.__doc__ or "", main, sys.argv[1:]))
