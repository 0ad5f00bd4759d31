"""Runs a command: parses the command line, prints errors and returns the exit code."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from imf_ray.aliases import rename_overrides
from imf_ray.cluster import cluster_address
from imf_ray.command import Command, help_text
from imf_ray.config import announce_rename, to_yaml
from imf_ray.env_vars import prepare_environment
from imf_ray.errors import UserError
from imf_ray.interrupts import ForcedExit, stop_at_once
from imf_ray.terminal import STDERR, STDOUT, open_missing_streams

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_command(command: Command, argv: Sequence[str], program: str | None = None) -> int:
    """Parse the command line, run the command and return the exit code.

    A `UserError` is printed as one message, and the exit code is 2. With `debug=true` it is raised,
    so that the traceback is shown. After Ctrl-C the exit code is 130.

    Args:
        program: the words that call the command, such as `imf-ray train`, for its help; None uses
            `python -m imf_ray.NAME`.
    """
    open_missing_streams()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("imf_ray").setLevel(logging.INFO)
    program = program or f"python -m imf_ray.{command.name}"
    flags = _parser(command.usage(program)).parse_args(argv)
    if flags.help or flags.help_all:
        print_text(help_text(command, program, every_option=flags.help_all))
        return 0
    positional: list[str] = []
    if command.positional:
        positional = [item for item in flags.arguments if "=" not in item or Path(item).exists()]
    overrides = [item for item in flags.arguments if item not in positional]
    try:
        overrides = rename_overrides(overrides, announce_rename)
        config = command.resolve(overrides)
        if flags.print_config:
            print_text(to_yaml(config), end="")
            return 0
        prepare_environment(own_cluster=cluster_address(config) is None)
        with stop_at_once():
            command.run(config, overrides, *([positional] if command.positional else []))
    except UserError as error:
        if "debug=true" in (override.lower() for override in overrides):
            raise
        print(f"Error: {error}", file=STDERR)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        hint = "To resume, repeat the command with the same run_name."
        print(f"Interrupted. {interrupt.args[0] if interrupt.args else hint}", file=STDERR)
        if isinstance(interrupt, ForcedExit):
            # Exit without shutting Ray down: a thread that calls Ray after its shutdown would make
            # the process exit with code 1. A cluster that this process started ends with it.
            STDERR.flush()
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    return 0


def print_text(text: str, end: str = "\n") -> None:
    """Print a text, also into a pipe that is closed early, as `head` and `less` do."""
    print(text, end=end, flush=True, file=STDOUT)


def resume_command(module: str, overrides: Sequence[str], **options: str) -> str:
    """Return the command line that resumes a run, quoted for a shell.

    Args:
        module: the entry point, such as `imf_ray.train`.
        overrides: the options of the original command.
        options: options that replace those of the same name in `overrides`.
    """
    others = [item for item in overrides if item.partition("=")[0] not in options]
    replacements = [f"{key}={value}" for key, value in options.items()]
    return shlex.join(["python", "-m", module, *others, *replacements])


def _parser(usage: str) -> argparse.ArgumentParser:
    """Make the parser of the flags; all other arguments are collected in `arguments`."""
    parser = argparse.ArgumentParser(usage=usage, add_help=False)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--help-all", action="store_true")
    return parser
