"""Shows the progress of runs and sweeps from their folder: `imf-ray status DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.folders import FolderKind, display, require_run
from imf_ray.schema import Config
from imf_ray.storage import local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> None:
    """Print the state of a run, of each trial of a sweep, or of all runs in a folder DIR.

    Shows the state, training step, newest checkpoint, loss, throughput, success rate and errors. It
    reads only the folder, so it works during and after the run on any machine that can read it.
    """
    if len(arguments) != 1:
        raise UserError("One folder of a run or a sweep is needed. Usage: imf-ray status DIR")
    from imf_ray.sweep.status import read_all, status_table

    folder = local_dir(arguments[0])
    kinds = (FolderKind.RUN, FolderKind.SWEEP, FolderKind.STORAGE)
    require_run(folder, config.storage_path, kinds, lambda run: f"imf-ray status {display(run)}")
    runs = read_all(folder)
    console.print(status_table(runs))
    for run in runs:
        for note in run.notes:
            console.print(f"{run.name}: {note}", soft_wrap=True)


COMMAND = Command(
    "status",
    main,
    examples=("runs/transfer", "s3://bucket/runs/sweep"),
    positional="DIR",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
