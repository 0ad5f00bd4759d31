"""Trains one policy: `python -m imf_ray.train agent=... data.dataset_dir=DIR`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from imf_ray.allocation import allocate_run
from imf_ray.cli import resume_command, run, run_interruptibly
from imf_ray.cluster import init_ray
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import display_path, local_dir, parse_path
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str]) -> None:
    """Train one policy, or go on with the run that `run_name` names."""
    from imf_ray.training.checkpoint import best_checkpoint
    from imf_ray.training.progress import RunProgress, format_metrics
    from imf_ray.training.stop_signal import clear_stop, request_stop, safe_to_kill
    from imf_ray.training.tracking import describe_tracking
    from imf_ray.training.trainer import fit, prepare_run

    if config.resume is not None:
        raise UserError("resume=auto is for sweeps: a run goes on by its run_name alone.")
    config.data.dataset_dir = str(parse_path(config.data.dataset_dir))
    name = config.run_name or f"{config.agent.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = local_dir(config.storage_path) / name
    checked = prepare_run(config)
    resources = allocate_run(config, init_ray(config))
    console.print(f"{checked.describe()}\nThis takes {resources}", soft_wrap=True)
    console.print(describe_tracking(config))
    console.print(
        f"Run: {display_path(run_dir)} (go on with it by run_name={name})", soft_wrap=True
    )
    clear_stop(run_dir)
    with RunProgress({run_dir: config.train.max_steps}, console):
        run_interruptibly(
            lambda: fit(checked, run_dir, resources),
            request_stop=lambda: request_stop(run_dir),
            is_safe=lambda: safe_to_kill(run_dir, config.train.max_steps),
            resume=resume_command("imf_ray.train", overrides, run_name=name),
        )
    best = best_checkpoint(run_dir)
    console.print(f"Best checkpoint: {display_path(best.path)}", soft_wrap=True)
    console.print(f"  {format_metrics(best.metrics)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run("imf_ray.train", main, sys.argv[1:]))
