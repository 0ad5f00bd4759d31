"""Trains one policy: `python -m imf_ray.train agent=... data.dataset_dir=DIR`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from imf_ray.errors import UserError
from imf_ray.launch import connect, console, interruptible, resume_command, run
from imf_ray.places import place, shown, working_copy
from imf_ray.resources import plan_run
from imf_ray.schema import Config


def main(config: Config, overrides: Sequence[str]) -> None:
    """Train one policy, or go on with the run that `run_name` names."""
    from imf_ray.training.checkpoint import best_checkpoint
    from imf_ray.training.interruption import is_safe, request_stop, withdraw_stop
    from imf_ray.training.progress import ProgressBoard, describe_metrics
    from imf_ray.training.tracking import describe_tracking
    from imf_ray.training.trainer import check_run, fit

    if config.resume is not None:
        raise UserError("resume=auto is for sweeps: a run goes on by its run_name alone.")
    config.data.dataset_dir = str(place(config.data.dataset_dir))
    name = config.run_name or f"{config.agent.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = working_copy(config.storage_path) / name
    checked = check_run(config)
    resources = plan_run(config, connect(config))
    console.print(f"{checked.describe()}\nThis takes {resources}", soft_wrap=True)
    console.print(describe_tracking(config))
    console.print(f"Run: {shown(run_dir)} (go on with it by run_name={name})", soft_wrap=True)
    withdraw_stop(run_dir)
    with ProgressBoard({run_dir: config.train.max_steps}, console):
        interruptible(
            lambda: fit(checked, run_dir, resources),
            request_stop=lambda: request_stop(run_dir),
            is_safe=lambda: is_safe(run_dir, config.train.max_steps),
            resume=resume_command("imf_ray.train", overrides, run_name=name),
        )
    best = best_checkpoint(run_dir)
    console.print(f"Best checkpoint: {shown(best.path)}", soft_wrap=True)
    console.print(f"  {describe_metrics(best.metrics)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run("imf_ray.train", main, sys.argv[1:]))
