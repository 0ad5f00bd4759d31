"""Runs a command: parses the command line, prints errors and returns the exit code."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from imf_ray.aliases import OPTIONS, rename_overrides
from imf_ray.argument_hints import option_for
from imf_ray.cluster import cluster_address, ray_stopped_after
from imf_ray.command import Command, help_text
from imf_ray.config import (
    CONFIG,
    GROUPS,
    RECIPE,
    announce_rename,
    check_option,
    shell_override,
    to_yaml,
)
from imf_ray.env_vars import prepare_environment
from imf_ray.errors import UserError
from imf_ray.interrupts import ForcedExit, stop_at_once
from imf_ray.schema import all_options
from imf_ray.schema.values import TRUE_WORDS
from imf_ray.storage import DISK_FULL_ERRNOS, PERMANENT_ERRNOS, expand_variables
from imf_ray.terminal import STDERR, STDOUT, console, open_missing_streams, output_failure

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
PRINT_CONFIG, HELP_ALL, HELP = "--print-config", "--help-all", ("--help", "-h")


def run_command(command: Command, argv: Sequence[str], program: str | None = None) -> int:
    """Parse the command line, run the command and return the exit code.

    A `UserError` is printed as one message, and the exit code is 2; so is the error of a path that
    the system refuses. With `debug=true` it is raised, so that the traceback is shown. After Ctrl-C
    the exit code is 130. If a file does not take the command's output, see `exit_code`.

    Args:
        program: the words that call the command, such as `imf-ray train`, for its help; None uses
            `python -m imf_ray.NAME`.
    """
    open_missing_streams()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("imf_ray").setLevel(logging.INFO)
    return exit_code(_run(command, argv, program or f"python -m imf_ray.{command.name}"))


def _run(command: Command, argv: Sequence[str], program: str) -> int:
    """Run the command and return its exit code; see `run_command`."""
    if {HELP_ALL, *HELP} & set(argv):
        print_text(help_text(command, program, every_option=HELP_ALL in argv))
        return 0
    try:
        _require_working_dir()
        takes_paths = command.positional is not None
        positional, overrides = split_arguments(argv, takes_paths, list(command.flags))
        require_options(overrides, command.name)
        if command.argument_option is not None:
            overrides = _argument_as_option(command, positional, overrides)
        overrides = rename_overrides(overrides, announce_rename)
        config = command.resolve(overrides)
        if PRINT_CONFIG in argv:
            print_text(to_yaml(config), end="")
            return 0
        prepare_environment(own_cluster=cluster_address(config) is None)
        with stop_at_once():
            arguments = [positional] if command.passes_arguments else []
            with ray_stopped_after():
                next_command = command.run(config, overrides, *arguments)
        if next_command is not None:
            console.print(f"Next: imf-ray {next_command}", soft_wrap=True)
    except (UserError, OSError) as error:
        message = _user_message(error)
        debug = {f"debug={word}" for word in TRUE_WORDS}
        if message is None or debug & {argument.lower() for argument in argv}:
            raise
        print(f"Error: {message}", file=STDERR)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        hint = "To continue, repeat the command with the same options."
        print(f"Interrupted. {interrupt.args[0] if interrupt.args else hint}", file=STDERR)
        if isinstance(interrupt, ForcedExit):
            # Exit without shutting Ray down: a thread that calls Ray after its shutdown would make
            # the process exit with code 1. A cluster that this process started ends with it.
            STDERR.flush()
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    return 0


def exit_code(code: int = 0) -> int:
    """Return the exit code of a command that has ended with `code`.

    If stdout is a file whose disk did not take the end of the output, an error is printed and the
    code is not 0. A pipe that is closed early is no error.
    """
    failure = output_failure()
    if failure is None:
        return code
    print(
        f"Error: The output could not be written to stdout: {failure.strerror}. Free some space, "
        "or redirect the output to another disk, and repeat the command.",
        file=STDERR,
    )
    return code or EXIT_USER_ERROR


def _require_working_dir() -> None:
    """Raise a `UserError` if the working directory was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("The working directory was deleted. Change to another one.") from error


def _user_message(error: UserError | OSError) -> str | None:
    """Return the message for an error that the user can resolve; None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    if error.errno not in (*PERMANENT_ERRNOS, *DISK_FULL_ERRNOS):
        return None
    return (
        f"{error.filename or 'A file'} cannot be used: {error.strerror}. Set the option or the "
        "environment variable of this path to a folder that is writable and not full."
    )


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


def split_arguments(
    argv: Sequence[str], takes_paths: bool, flags: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Split a command line into positional arguments and `key=value` options.

    The part before `=` decides whether an argument is an option or a path. The name of an option
    makes it an option, also if there is such a path.

    Args:
        takes_paths: the command has positional arguments.
        flags: flags of the command, which become positional arguments. Other flags are left out.

    Raises:
        UserError: an argument is not text, is an unknown flag, or is neither an option nor a path.
    """
    positional, overrides = [], []
    for item in argv:
        if not _is_unicode(item):
            raise UserError(f"The argument {item!r} is not text in UTF-8.")
        if item == PRINT_CONFIG:
            continue
        if item in flags:
            positional.append(item)
            continue
        if item.startswith("-"):
            known = ", ".join([*flags, PRINT_CONFIG, HELP_ALL])
            raise UserError(
                f"{item} is not a flag. Flags are {known} and {HELP[0]}. "
                f"Options are written key=value, without dashes. Write ./{item} for a path."
            )
        if takes_paths and not _is_option(item):
            positional.append(expand_variables(item, item))
        else:
            overrides.append(item)
    return positional, overrides


def require_options(arguments: Sequence[str], command: str) -> None:
    """Check that arguments have the form `key=value`.

    Raises:
        UserError: one has not. The message names the option that it may be meant for.
    """
    for item in arguments:
        if "=" not in item and (hint := option_for(item, command)) is not None:
            raise UserError(f"{item!r} is not an option. Write {hint}")


def _argument_as_option(
    command: Command, arguments: Sequence[str], overrides: Sequence[str]
) -> list[str]:
    """Return the overrides with a positional argument as the option that it sets.

    Raises:
        UserError: there are several arguments, the option is given as well, or the argument is the
            name of an option without a value.
    """
    key = str(command.argument_option)
    values = [item for item in overrides if item.startswith(f"{key}=")]
    for argument in arguments:
        hint = option_for(argument, command.name)
        if hint is not None and hint != shell_override(key, argument):
            raise UserError(f"{argument!r} is not a value of {key}. Write {hint}")
    if len(arguments) > 1 or (arguments and values):
        raise UserError(
            f"imf-ray {command.name} takes one value of {key}, but "
            f"{len(arguments) + len(values)} are given: {', '.join([*arguments, *values])}."
        )
    return [*(f"{key}={argument}" for argument in arguments), *overrides]


def _is_unicode(text: str) -> bool:
    """Return False if the text has bytes that are not UTF-8, which Python keeps as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_option(item: str) -> bool:
    """Return True if an argument of a command that takes paths is an option.

    Raises:
        UserError: it is neither an option nor a path.
    """
    key, separator, _ = item.partition("=")
    if not separator:
        return False
    if key in {*all_options(), *OPTIONS, *GROUPS, RECIPE, CONFIG}:
        return True
    if not re.fullmatch(r"[\w.]+", key) or Path(item).exists():
        return False
    try:
        check_option(key, item)
    except UserError as error:
        raise UserError(f"{error} If it is a path, write ./{item}") from error
    return True
