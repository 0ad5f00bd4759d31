"""Handles requests to stop: Ctrl-C, SIGTERM from a cluster, SIGHUP from a terminal that closes.

A run stops after one more checkpoint. Other work stops at once. A SIGHUP that the caller ignores,
as `nohup` does, stays ignored.
"""

from __future__ import annotations

import os
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
Handler = Callable[[int, FrameType | None], None]


class ForcedExit(KeyboardInterrupt):
    """The work was interrupted, but its thread still runs; exit without waiting for it."""


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Raise `KeyboardInterrupt` inside the `with` block for every request to stop."""

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:  # a closing terminal sends it several times
            signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handling_signals(on_signal):
        yield


def run_interruptibly(
    work: Callable[[], Result],
    request_stop: Callable[[], None],
    is_safe: Callable[[], bool],
    resume: str,
) -> Result:
    """Run `work` and return its result; stop it after a checkpoint when the user presses Ctrl-C.

    The first Ctrl-C, SIGTERM or SIGHUP calls `request_stop` and waits until the work has ended or
    `is_safe` returns True. A second Ctrl-C or SIGTERM stops the wait. SIGHUP does not count here,
    because a closing terminal sends it several times.

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
    stop_requested, pressed = threading.Event(), threading.Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGHUP:
            if pressed.is_set():
                raise ForcedExit(resume_hint)
            pressed.set()
        stop_requested.set()

    def stop_accepted() -> bool:
        request_stop()
        return True

    with _handling_signals(on_signal):
        threading.Thread(target=run_work, daemon=True).start()
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


@contextmanager
def children_ignore_hangup() -> Iterator[None]:
    """Start processes inside the `with` block that outlive the terminal.

    A closing terminal sends SIGHUP to this process and to all that it has started. Ray's processes
    must live until the last checkpoint is saved, so they inherit that the signal is ignored. Inside
    the block, this process ignores it as well. Afterwards it has its own handlers again, also that
    of SIGTERM, which `ray.init` replaces, and handles that its terminal was closed inside.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change handlers
        return
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGHUP, signal.SIGTERM)}
    had_terminal = _has_terminal()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    if had_terminal and not _has_terminal():
        signal.raise_signal(signal.SIGHUP)


def _has_terminal() -> bool:
    """Return False if the process has no terminal, or if it was closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


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
def _handling_signals(handler: Handler) -> Iterator[None]:
    """Install a handler inside the `with` block: for SIGINT, SIGTERM and SIGHUP if not ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    previous_handlers = {signum: signal.signal(signum, handler) for signum in signals}
    try:
        yield
    finally:
        for signum, previous_handler in previous_handlers.items():
            signal.signal(signum, previous_handler)
