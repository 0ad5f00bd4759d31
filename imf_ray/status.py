"""Shows the progress of a sweep or a run from its folder: `imf-ray status DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> None:
    """Print the state of a run, or of each trial of a sweep, from its folder DIR.

    Shows the state, training step, newest checkpoint, loss, throughput, success rate and errors. It
    reads only the folder, so it works during and after the run on any machine that can read it.
    """
    if len(arguments) != 1:
        raise UserError("The folder of a run or a sweep is needed. Usage: imf-ray status DIR")
    from imf_ray.sweep.status import read_all, status_table

    runs = read_all(local_dir(arguments[0]))
    console.print(status_table(runs))
    for run in runs:
        if run.error is not None:
            console.print(f"{run.name}: {run.error}", soft_wrap=True)


COMMAND = Command(
    "status",
    main,
    examples=("runs/transfer", "s3://bucket/runs/sweep"),
    positional="DIR",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
