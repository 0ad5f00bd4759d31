"""Shows how far a sweep or a run is, from its folder alone: `python -m imf_ray.status DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imf_ray.cli import run
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import download, local_dir
from imf_ray.terminal import console


def main(config: Config, overrides: Sequence[str], folders: Sequence[str]) -> None:
    """Print a line for each trial of a sweep, or for a run: state, step, newest checkpoint, loss,
    speed, success, and what went wrong. Nothing but the folder is asked, so that it works beside
    the run and after it, on any machine that sees the folder."""
    if len(folders) != 1:
        raise UserError("Name the folder of a sweep or a run: python -m imf_ray.status DIR")
    from imf_ray.sweep.status import read_all, status_table

    folder = local_dir(folders[0])
    download(folder, "*.yaml", "*.json", "*.jsonl")
    runs = read_all(folder)
    console.print(status_table(runs))
    for found in runs:
        if found.error is not None:
            console.print(f"{found.name}: {found.error}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run("imf_ray.status", main, sys.argv[1:], names="DIR"))
