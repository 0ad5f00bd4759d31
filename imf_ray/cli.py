"""What the entry points share: the command line, the connection to Ray, and the way errors end."""

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

from imf_ray.cluster import cluster_address
from imf_ray.config import GROUPS, RECIPE, group_choices, key_help, load_config, to_yaml
from imf_ray.env_vars import prepare_environment
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.terminal import console

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
POLL_INTERVAL_S = 0.2
Result = TypeVar("Result")


Main = Callable[..., None]


class _ForcedExit(KeyboardInterrupt):
    """An interruption that leaves a thread behind which uses Ray."""


def run(
    module: str,
    main: Main,
    argv: Sequence[str],
    resolve: Callable[[Sequence[str]], Config] = load_config,
    names: str | None = None,
) -> int:
    """Parse the command line, call `main(config, overrides)`, and return the exit code.

    With `names`, what those are called, arguments that are no options are `main`'s third argument.

    The docstring of `main` says in `--help` what it is for; `resolve` makes the configuration of
    the overrides.

    Bad input ends in one message and code 2; a traceback is shown only with `debug=true`. Ctrl-C
    ends with code 130.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("imf_ray").setLevel(logging.INFO)
    parser = _parser(module, main.__doc__ or "", names)
    arguments = parser.parse_args(argv)
    given = [a for a in arguments.overrides if names and ("=" not in a or Path(a).exists())]
    overrides = [argument for argument in arguments.overrides if argument not in given]
    debug = "debug=true" in (override.lower() for override in overrides)
    try:
        config = resolve(overrides)
        if arguments.print_config:
            print(to_yaml(config), end="")
            return 0
        prepare_environment(own_cluster=cluster_address(config) is None)
        main(config, overrides, *([given] if names else []))
    except UserError as error:
        if debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        again = "The same command, with the run_name of its run, goes on."
        how = interrupt.args[0] if interrupt.args else again
        print(f"Interrupted. {how}", file=sys.stderr, flush=True)
        if isinstance(interrupt, _ForcedExit):
            # Ray ends a process with code 1 whose threads come to use it after its farewell. A
            # cluster of our own dies with us; another one is told by the connection that breaks.
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    return 0


def run_interruptibly(
    work: Callable[[], Result],
    request_stop: Callable[[], None],
    is_safe: Callable[[], bool],
    resume: str,
) -> Result:
    """Carry out `work`, which leaves what it has reached when it is asked to stop.

    The first Ctrl-C (or SIGTERM, as a cluster sends it) calls `request_stop`, again while storage
    fails, and waits until `is_safe` or the work has ended; the second waits for nothing.

    Args:
        resume: the command that goes on.

    Raises:
        KeyboardInterrupt: it was interrupted; the message says how to go on.
    """
    # In a thread of its own: Ray Train and Tune answer Ctrl-C in their own ways where they can.
    outcome: Future[Result] = Future()

    def carry_out() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    how = f"Go on with:\n  {resume}"
    asked = threading.Event()

    def interrupted(signum: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise _ForcedExit(how)
        asked.set()

    def is_requested() -> bool:
        request_stop()
        return True

    threading.Thread(target=carry_out, daemon=True).start()
    with _handling_signals(interrupted):
        _wait(outcome, asked.is_set)
        if asked.is_set():
            console.print("Stopping after one more checkpoint; Ctrl-C again stops at once.")
            _wait(outcome, is_requested)
            _wait(outcome, is_safe)
            if outcome.done() and isinstance(error := outcome.exception(), Exception):
                console.print(f"It ended with an error: {error}", soft_wrap=True)
            raise KeyboardInterrupt(how) if outcome.done() else _ForcedExit(how)
    return outcome.result()


def _wait(outcome: Future[Any], condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, or for the outcome; storage may fail for a moment."""
    while not outcome.done():
        with suppress(UserError):
            if condition():
                return
        wait([outcome], timeout=POLL_INTERVAL_S)


@contextmanager
def _handling_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def resume_command(module: str, overrides: Sequence[str], **options: str) -> str:
    """The command line that goes on: `overrides`, and instead of theirs these options."""
    kept = [o for o in overrides if o.partition("=")[0] not in options]
    given = [f"{key}={value}" for key, value in options.items()]
    return shlex.join(["python", "-m", module, *kept, *given])


def _parser(module: str, purpose: str, names: str | None) -> argparse.ArgumentParser:
    groups = "\n".join(
        f"  {g}=NAME  one of {', '.join(group_choices(g))}" for g in [*GROUPS, RECIPE]
    )
    options = "\n".join(f"  {key}={default}" for key, default in key_help())
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=purpose,
        epilog=f"groups:\n{groups}\n\noptions and their defaults:\n{options}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = f"{names} or key=value" if names else "key=value"
    parser.add_argument("overrides", nargs="*", metavar=what, help="configuration overrides")
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved configuration and stop"
    )
    return parser
