"""Serves live pages of runs and sweeps: `imf-ray board DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.folders import FolderKind, folder_kind, require_run
from imf_ray.schema import Config
from imf_ray.storage import authoritative_path, local_dir
from imf_ray.terminal import console

KINDS = (FolderKind.RUN, FolderKind.SWEEP, FolderKind.STORAGE)


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> None:
    """Serve live pages of a run, a sweep, or all runs and sweeps in the folder or URL DIR.

    Without DIR, it is storage_path. The address is printed; Ctrl-C ends the server. It reads only
    the folder, so it works during and after the runs, on any machine that can read it. Nothing that
    it serves changes anything. A page refreshes itself.
    """
    if len(arguments) > 1:
        raise UserError(
            "One folder or URL is shown at a time. Usage: imf-ray board [DIR]. Give the folder "
            "that contains the runs, and its page links to each of them."
        )
    from imf_ray.pages.addresses import describe_address
    from imf_ray.pages.live import run_board

    location = arguments[0] if arguments else config.storage_path
    folder = local_dir(location)
    if folder_kind(authoritative_path(folder)) in (FolderKind.MISSING, FolderKind.FILE):
        require_run(folder, config.storage_path, KINDS)

    def announce(port: int) -> None:
        address = describe_address(config.board.host, port, "", os.environ)
        console.print(f"{address}\nCtrl-C ends it.", soft_wrap=True)

    run_board(location, config.board.host, config.board.port, announce)


COMMAND = Command(
    "board",
    main,
    examples=("runs", "s3://bucket/runs board.port=0"),
    positional="[DIR]",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
