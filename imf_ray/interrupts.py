"""Ctrl-C and SIGTERM: stop work at its next checkpoint, or at once the second time."""

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
    """An interruption that leaves a thread running that uses Ray."""


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
            raise ForcedExit(resume_hint)
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
            raise KeyboardInterrupt(resume_hint) if outcome.done() else ForcedExit(resume_hint)
    return outcome.result()


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
