"""Prints the results of a sweep: `imf-ray report run_name=SWEEP`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.config import shell_override
from imf_ray.errors import UserError
from imf_ray.folders import FolderKind, display, folder_kind, require_run
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, authoritative_path, local_dir
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
    if folder_kind(authoritative_path(sweep_dir.path)) == FolderKind.RUN:
        raise UserError(f"{sweep_dir} is a single run. See it with: imf-ray status {sweep_dir}")
    require_run(sweep_dir.path, config.storage_path, (FolderKind.SWEEP,), _as_options)
    results = sweep_dir.read_results()
    if results is None:
        raise UserError(
            f"{sweep_dir} has no results. Results are written when a sweep is finished; see the "
            f"state of its trials with: imf-ray status {shlex.quote(str(sweep_dir))}"
        )
    console.print(results_table(*results))


def _as_options(sweep: AnyPath) -> str:
    """Return the options that name a sweep."""
    return f"{shell_override('run_name', sweep.name)} storage_path={display(sweep.parent)}"


COMMAND = Command(
    "report",
    main,
    examples=("run_name=sweep", "run_name=sweep storage_path=s3://bucket/runs"),
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
