"""Running a command: the command line, exit codes, errors and Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from imf_ray.aliases import rename_overrides
from imf_ray.cluster import cluster_address
from imf_ray.command import Command, help_text
from imf_ray.config import announce_rename, to_yaml
from imf_ray.env_vars import prepare_environment
from imf_ray.errors import UserError
from imf_ray.terminal import console

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
POLL_INTERVAL_S = 0.2
"""Seconds between checks for Ctrl-C and for the end of the work."""
Result = TypeVar("Result")


class _ForcedExit(KeyboardInterrupt):
    """An interruption that leaves a thread running that uses Ray."""


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
        if isinstance(interrupt, _ForcedExit):
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


def run_interruptibly(
    work: Callable[[], Result],
    request_stop: Callable[[], None],
    is_safe: Callable[[], bool],
    resume: str,
) -> Result:
    """Run `work`, and stop it at a checkpoint when the user presses Ctrl-C.

    The first Ctrl-C (or SIGTERM, which a cluster sends) calls `request_stop`, repeatedly while
    storage fails, and waits until `is_safe` returns True or the work ends. The second one waits for
    nothing.

    Args:
        resume: the command that resumes the work.

    Raises:
        KeyboardInterrupt: the work was interrupted; the message holds the resume command.
    """
    # Ray Train and Tune handle Ctrl-C in their own ways in the main thread, so work gets another.
    outcome: Future[Result] = Future()

    def run_work() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    resume_hint = f"Resume with:\n  {resume}"
    stop_requested = threading.Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if stop_requested.is_set():
            raise _ForcedExit(resume_hint)
        stop_requested.set()

    def stop_accepted() -> bool:
        request_stop()
        return True

    threading.Thread(target=run_work, daemon=True).start()
    with _handling_signals(on_signal):
        _wait(outcome, stop_requested.is_set)
        if stop_requested.is_set():
            console.print("Stopping after one more checkpoint; Ctrl-C again stops at once.")
            _wait(outcome, stop_accepted)
            _wait(outcome, is_safe)
            if outcome.done() and isinstance(error := outcome.exception(), Exception):
                console.print(f"The work ended with an error: {error}", soft_wrap=True)
            raise KeyboardInterrupt(resume_hint) if outcome.done() else _ForcedExit(resume_hint)
    return outcome.result()


def resume_command(module: str, overrides: Sequence[str], **options: str) -> str:
    """The command line that resumes a run: `overrides`, with these options in place of theirs."""
    kept = [item for item in overrides if item.partition("=")[0] not in options]
    given = [f"{key}={value}" for key, value in options.items()]
    return shlex.join(["python", "-m", module, *kept, *given])


def _wait(outcome: Future[Any], condition: Callable[[], bool]) -> None:
    """Wait until a condition holds or the work ends; errors of storage count as not yet."""
    while not outcome.done():
        with suppress(UserError):
            if condition():
                return
        wait([outcome], timeout=POLL_INTERVAL_S)


@contextmanager
def _handling_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` on SIGINT and SIGTERM inside the block."""
    previous = {
        number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)


def _parser(usage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=usage, add_help=False)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--help-all", action="store_true")
    return parser
