"""Checks, shows and converts a data set: `imf-ray dataset check|features|inspect|convert DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import parse_path


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Check, show or convert the episodes of a data set.

    check DIR reads every file and prints one line for each: valid, or why it is invalid, and its
    bad parts that runs can do without. The exit code is 2 if a file is invalid (docs/data.md).

    features DIR prints what an episode has, what a run would use of it, and the options that say
    so, to be changed.

    inspect DIR prints lengths, outcomes, seeds and value ranges of the valid files. It also writes
    a contact sheet of all of them and a video of the first one into storage_path/inspections.

    convert DIR NEW_DIR writes the episodes into a new folder, in LeRobot's format v3.0 or as HDF5
    files (convert.format), in parallel. The same command resumes a conversion that was stopped.
    """
    if arguments[:1] == ["convert"] and len(arguments) == 3:
        from imf_ray.conversion.action import convert

        return convert(config, parse_path(arguments[1]), arguments[2])
    from imf_ray.data.dataset_actions import check, features, inspect

    actions = {"check": check, "features": features, "inspect": inspect}
    if len(arguments) != 2 or arguments[0] not in actions:
        raise UserError(
            "An action and a data set are needed: imf-ray dataset check DIR, features DIR, inspect "
            "DIR, or convert DIR NEW_DIR."
        )
    return actions[arguments[0]](config, parse_path(arguments[1]))


COMMAND = Command(
    "dataset",
    main,
    examples=(
        "check data/cpu_transfer",
        "features data/g1",
        "inspect data/cpu_transfer",
        "convert data/g1 data/g1_96 convert.format=imf_ray convert.image_size=96",
    ),
    positional="check|features|inspect|convert DIR [NEW_DIR]",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
