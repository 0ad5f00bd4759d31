"""Prints what a sweep found: `python -m imf_ray.report run_name=SWEEP`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imf_ray.cli import run
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import display_path, download, local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str]) -> None:
    """Print the table of a finished sweep from its folder, storage_path/run_name."""
    if config.run_name is None:
        raise UserError("Name the sweep: run_name=NAME (a folder in storage_path).")
    from imf_ray.sweep.results import JSON_FILE, read_sweep, results_table

    sweep_dir = local_dir(config.storage_path) / config.run_name
    download(sweep_dir / JSON_FILE)
    if not (sweep_dir / JSON_FILE).is_file():
        raise UserError(f"{display_path(sweep_dir)} holds no {JSON_FILE}: is it a finished sweep?")
    console.print(results_table(*read_sweep(sweep_dir)))


if __name__ == "__main__":
    sys.exit(run("imf_ray.report", main, sys.argv[1:]))
