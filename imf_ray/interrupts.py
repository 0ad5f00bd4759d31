"""Handles Ctrl-C and SIGTERM: the first stops a run after a checkpoint, the second immediately."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from imf_ray.errors import UserError
from imf_ray.terminal import console

POLL_INTERVAL_S = 0.2
"""Seconds between checks for Ctrl-C and for the end of the work."""
Result = TypeVar("Result")


class ForcedExit(KeyboardInterrupt):
    """The work was interrupted, but its thread still runs; exit without waiting for it."""


def run_interruptibly(
    work: Callable[[], Result],
    request_stop: Callable[[], None],
    is_safe: Callable[[], bool],
    resume: str,
) -> Result:
    """Run `work` and return its result; stop it after a checkpoint when the user presses Ctrl-C.

    The first Ctrl-C, or SIGTERM from a cluster, calls `request_stop` and waits until the work has
    ended or `is_safe` returns True. The second one stops the wait.

    Args:
        work: called in a background thread.
        request_stop: asks the work to stop after its next checkpoint. It is repeated while it
            raises `UserError` because storage fails.
        is_safe: True if the process may be killed without losing training steps.
        resume: the command that resumes the work, for the message.

    Raises:
        KeyboardInterrupt: the work was interrupted. The message contains the resume command.
    """
    # The work gets a thread of its own: in the main thread, Ray Train and Tune handle Ctrl-C
    # themselves.
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
            raise ForcedExit(resume_hint)
        stop_requested.set()

    def stop_accepted() -> bool:
        request_stop()
        return True

    threading.Thread(target=run_work, daemon=True).start()
    with _handling_signals(on_signal):
        _wait(outcome, stop_requested.is_set)
        if stop_requested.is_set():
            console.print(
                "Stopping after one more checkpoint. Press Ctrl-C again to stop immediately."
            )
            _wait(outcome, stop_accepted)
            _wait(outcome, is_safe)
            if outcome.done() and isinstance(error := outcome.exception(), Exception):
                console.print(f"The work ended with an error: {error}", soft_wrap=True)
            raise KeyboardInterrupt(resume_hint) if outcome.done() else ForcedExit(resume_hint)
    return outcome.result()


def _wait(outcome: Future[Any], condition: Callable[[], bool]) -> None:
    """Wait until a condition returns True or the work ends.

    A `UserError` of the condition, such as a storage failure, counts as False.
    """
    while not outcome.done():
        with suppress(UserError):
            if condition():
                return
        wait([outcome], timeout=POLL_INTERVAL_S)


@contextmanager
def _handling_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install `handler` for SIGINT and SIGTERM inside the `with` block."""
    previous_handlers = {
        signum: signal.signal(signum, handler) for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for signum, previous_handler in previous_handlers.items():
            signal.signal(signum, previous_handler)
