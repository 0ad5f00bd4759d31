"""Running a command: the command line, exit codes and errors."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from imf_ray.aliases import rename_overrides
from imf_ray.cluster import cluster_address
from imf_ray.command import Command, help_text
from imf_ray.config import announce_rename, to_yaml
from imf_ray.env_vars import prepare_environment
from imf_ray.errors import UserError
from imf_ray.interrupts import ForcedExit

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_command(command: Command, argv: Sequence[str], program: str | None = None) -> int:
    """Parse the command line, run the command and return the exit code.

    Bad input ends in one message and code 2; a traceback is shown only with `debug=true`. Ctrl-C
    ends with code 130.

    Args:
        program: the words that call the command, for its help.
    """
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
        command.run(config, overrides, *([positional] if command.positional else []))
    except UserError as error:
        if "debug=true" in (override.lower() for override in overrides):
            raise
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        hint = "To resume, repeat the command with the run_name of its run."
        print(f"Interrupted. {interrupt.args[0] if interrupt.args else hint}", file=sys.stderr)
        if isinstance(interrupt, ForcedExit):
            # A thread that calls Ray after its shutdown would make the process exit with code 1. A
            # cluster started here dies with this process; another one sees the connection close.
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    return 0


def print_text(text: str, end: str = "\n") -> None:
    """Print a long text, whose reader may close the pipe early, as `head` and `less` do."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        # Otherwise Python fails again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def resume_command(module: str, overrides: Sequence[str], **options: str) -> str:
    """The command line that resumes a run: `overrides`, with these options in place of theirs."""
    kept = [item for item in overrides if item.partition("=")[0] not in options]
    given = [f"{key}={value}" for key, value in options.items()]
    return shlex.join(["python", "-m", module, *kept, *given])


def _parser(usage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=usage, add_help=False)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--help-all", action="store_true")
    return parser
