"""Prints the results of a sweep: `imf-ray report run_name=SWEEP`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str]) -> None:
    """Print the results table of the finished sweep in storage_path/run_name."""
    if config.run_name is None:
        raise UserError(
            "run_name is not set. Use run_name=NAME, the folder of a sweep in storage_path."
        )
    from imf_ray.sweep.results import results_table
    from imf_ray.sweep.sweep_dir import SweepDir

    sweep_dir = SweepDir(local_dir(config.storage_path) / config.run_name)
    results = sweep_dir.read_results()
    if results is None:
        raise UserError(
            f"{sweep_dir} has no results. Results are written when a sweep is finished; see the "
            f"state of its trials with: imf-ray status {sweep_dir}"
        )
    console.print(results_table(*results))


COMMAND = Command(
    "report",
    main,
    examples=("run_name=sweep", "run_name=sweep storage_path=s3://bucket/runs"),
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
