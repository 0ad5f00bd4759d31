"""Runs the command `python -m imf_ray.dataset` under its earlier name."""

import sys

from imf_ray.cli import run_command
from imf_ray.dataset import COMMAND

if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
