"""Trains one policy: `imf-ray train agent=... data.dataset_dir=DIR`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imf_ray.allocation import allocate_run
from imf_ray.cli import resume_command, run_command
from imf_ray.cluster import init_ray_beside
from imf_ray.command import Command
from imf_ray.config import new_run_name, shell_override
from imf_ray.errors import UserError
from imf_ray.interrupts import run_interruptibly
from imf_ray.pages.background import board_while_running
from imf_ray.progress_bars import LOADING, activity
from imf_ray.schema import Config
from imf_ray.storage import local_dir, parse_path
from imf_ray.terminal import console

if TYPE_CHECKING:
    from imf_ray.training.run_check import CheckedRun
    from imf_ray.training.run_dir import RunDir


def main(config: Config, overrides: Sequence[str]) -> str:
    """Train one policy, or resume the run `run_name`.

    The folder storage_path/run_name holds the run's checkpoints, metrics and configuration. Ctrl-C
    stops after one more checkpoint and prints the command that resumes the run.
    """
    from imf_ray.data.dataset_folder import find_dataset, list_dataset
    from imf_ray.training.progress import report_best
    from imf_ray.training.run_dir import RunDir
    from imf_ray.training.run_identity import init_or_verify_run_dir, is_finished, load_run

    if config.resume is not None:
        raise UserError(
            "resume=auto is an option of `imf-ray tune`. To resume a run, set its run_name."
        )
    dataset = parse_path(config.data.dataset_dir)
    name = config.run_name or new_run_name("agent.name", config.agent.name)
    run_dir = RunDir(local_dir(config.storage_path) / name)
    with run_dir.claimed():  # before the imports of `_train`, which take seconds
        if not list_dataset(dataset, config.data.format)[1]:
            find_dataset(dataset, config.data.format)
        if is_finished(run_dir, config):
            from imf_ray.training.data_defaults import resolve_config

            init_or_verify_run_dir(load_run(resolve_config(config, overrides)), run_dir)
            updates = f"finished after {config.train.max_steps} updates"
            console.print(f"The run {run_dir} is {updates}.", soft_wrap=True)
            console.print("To train anew, choose another run_name.")
            return report_best(run_dir, console, config.task.has_simulator)
        return _train(config, overrides, run_dir)


def _check(config: Config, overrides: Sequence[str], run_dir: RunDir) -> CheckedRun:
    with activity(LOADING):
        from imf_ray.training.run_check import check_run
    with activity("Checking the run"):
        return check_run(config, overrides, run_dir)


def _train(config: Config, overrides: Sequence[str], run_dir: RunDir) -> str:
    """Train or resume a run whose folder is claimed; return the next command."""
    with board_while_running(config, run_dir.path):
        check = functools.partial(_check, config, overrides, run_dir)
        size, checked = init_ray_beside(config, check)
        config = checked.prepared.config
        from imf_ray.pages.report_file import reported_launch
        from imf_ray.ray_internals import start_shared_actors
        from imf_ray.training.checkpoint import describe_checkpoints
        from imf_ray.training.progress import RunProgress, report_best
        from imf_ray.training.tracking import describe_tracking
        from imf_ray.training.trainer import fit
        from imf_ray.training.validation import check_any_succeeded

        start_shared_actors()
        resources = allocate_run(config, size)
        lines = [f"Resources: {resources}", describe_checkpoints(config)]
        for line in (*checked.describe(), *lines, *describe_tracking(config, run_dir)):
            console.print(line, soft_wrap=True)
        resume = shell_override("run_name", run_dir.name)
        console.print(f"Run: {run_dir} (resume it with {resume})", soft_wrap=True)
        run_dir.clear_stop()
        with reported_launch(run_dir.path, COMMAND.name, overrides, config.report):
            with RunProgress({run_dir: config.train.max_steps}, console):
                outcome = run_interruptibly(
                    lambda: fit(checked.prepared, run_dir, resources, initial=checked.initial),
                    request_stop=run_dir.request_stop,
                    is_safe=lambda: run_dir.safe_to_kill(config.train.max_steps),
                    resume=resume_command("imf_ray.train", overrides, run_name=run_dir.name),
                )
            next_command = report_best(run_dir, console, config.task.has_simulator)
            for line in describe_tracking(config, run_dir, swanlab_run=outcome.swanlab_run):
                console.print(line, soft_wrap=True)
            check_any_succeeded(run_dir, config)
        return next_command


COMMAND = Command(
    "train",
    main,
    examples=(
        "recipe=cpu_transfer run_name=transfer",
        "config=runs/transfer/config.yaml train.lr=1e-3 run_name=transfer_lr",
    ),
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
