"""Shows the progress of runs and sweeps from their folder: `imf-ray status DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.folders import FolderKind, display, require_run
from imf_ray.schema import Config
from imf_ray.storage import authoritative_path, local_dir
from imf_ray.terminal import console

WATCH = "--watch"


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Print the state of a run, of each trial of a sweep, or of all runs and sweeps in a folder.

    Shows the state, progress, time left, success rate, loss, speed, newest checkpoint and errors.
    It reads only the folder or URL DIR, so it works during and after the run on any machine that
    can read it. Columns that are too much for the width of the terminal are named.

    With --watch, the table is shown anew every 2 seconds until Ctrl-C. Into a file or pipe, a new
    table is printed when a state or a success rate changes, and otherwise once a minute if there
    is anything new.
    """
    folders = [argument for argument in arguments if argument != WATCH]
    if len(folders) != 1:
        raise UserError(
            f"One folder of a run or a sweep is needed. Usage: imf-ray status DIR [{WATCH}]"
        )
    from imf_ray.pages.terminal_view import TerminalView
    from imf_ray.pages.terminal_watch import open_reader, watch

    folder = local_dir(folders[0])
    kinds = (FolderKind.RUN, FolderKind.SWEEP, FolderKind.STORAGE)
    require_run(folder, config.storage_path, kinds, lambda run: f"imf-ray status {display(run)}")
    with open_reader(folders[0]) as read:
        if WATCH in arguments:
            watch(read, console)
            return None
        snapshot = read()
        console.print(TerminalView(snapshot), crop=False)
    shown = display(authoritative_path(folder))
    return f"status {shown} {WATCH}" if snapshot.is_active else f"report {shown}"


COMMAND = Command(
    "status",
    main,
    examples=("runs/transfer", f"s3://bucket/runs/sweep {WATCH}"),
    positional="DIR",
    flags={WATCH: "show the newest state again and again until Ctrl-C"},
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
