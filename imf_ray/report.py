"""Writes the report of a run, sweep, comparison or evaluation: `imf-ray report DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.folders import WITH_REPORT, FolderKind, display, folder_kind, require_run
from imf_ray.schema import Config
from imf_ray.storage import authoritative_path, display_path, local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> str:
    """Write report.html into a folder DIR, and print the results table of a finished sweep.

    DIR is the folder or URL of a run, a sweep, a comparison or an evaluation, or a folder of runs.
    The report is one file that opens without a server or a network. It can also be written while
    the run or sweep is running. run_name=NAME is the same as DIR=storage_path/NAME.
    """
    folder = _folder(config, arguments)
    require_run(
        folder, config.storage_path, WITH_REPORT, lambda run: f"imf-ray report {display(run)}"
    )
    if folder_kind(authoritative_path(folder)) == FolderKind.SWEEP:
        from imf_ray.sweep.results import results_table
        from imf_ray.sweep.sweep_dir import SweepDir

        results = SweepDir(folder).read_results()
        if results is not None:
            console.print(results_table(*results))
    from imf_ray.pages.report_file import write_report

    console.print(f"Report: {display_path(write_report(folder, config.report))}", soft_wrap=True)
    return f"board {display(authoritative_path(folder))}"


def _folder(config: Config, arguments: Sequence[str]) -> Path:
    """Return the folder that the command line names."""
    if len(arguments) > 1 or (arguments and config.run_name is not None):
        named = [*arguments, *([] if config.run_name is None else [f"run_name={config.run_name}"])]
        raise UserError(f"One folder is needed, but {len(named)} are given: {', '.join(named)}.")
    if arguments:
        return local_dir(arguments[0])
    if config.run_name is None:
        raise UserError("No folder is given. Use imf-ray report DIR, or run_name=NAME.")
    return local_dir(config.storage_path) / config.run_name


COMMAND = Command(
    "report",
    main,
    examples=("runs/sweep", "s3://bucket/runs/sweep report.output=sweep.html"),
    positional="DIR",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
