"""Requests to stop: which signal stops what, and what the processes of Ray inherit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from imf_ray import interrupts
from imf_ray.interrupts import (
    ForcedExit,
    children_ignore_hangup,
    run_interruptibly,
    stop_at_once,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def unchanged_handlers() -> Iterator[None]:
    """Each test ends with the handlers with which it began."""
    handlers = [signal.getsignal(signum) for signum in SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == handlers


class Run:
    """A run that saves a checkpoint some time after it is asked to stop."""

    def __init__(self, *signals: signal.Signals, saving_s: float = 0.5) -> None:
        self.saved = False
        self._signals, self._saving_s = signals, saving_s
        self._asked = threading.Event()

    def work(self) -> str:
        for signum in self._signals:
            os.kill(os.getpid(), signum)
            time.sleep(0.1)  # two pending signals of one kind would be one
        self._asked.wait(timeout=1.0)
        if self._asked.is_set():
            time.sleep(self._saving_s)
            self.saved = True
        return "done"

    def __call__(self) -> str:
        is_saved = lambda: self.saved  # noqa: E731
        return run_interruptibly(self.work, self._asked.set, is_saved, resume="the command")


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_waits_for_a_checkpoint(signum: signal.Signals) -> None:
    run = Run(signum)
    with pytest.raises(KeyboardInterrupt, match="the command"):
        run()
    assert run.saved


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGHUP, signal.SIGHUP, signal.SIGHUP),  # the kernel's and the shell's
        (signal.SIGTERM, signal.SIGHUP),  # systemd sends both
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGINT),
    ],
)
def test_a_closing_terminal_counts_once(signals: tuple[signal.Signals, ...]) -> None:
    run = Run(*signals)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.saved


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGHUP, signal.SIGINT, signal.SIGTERM),
    ],
)
def test_the_second_press_does_not_wait(signals: tuple[signal.Signals, ...]) -> None:
    run = Run(*signals, saving_s=3.0)
    with pytest.raises(ForcedExit, match="the command"):
        run()
    assert not run.saved


@pytest.fixture
def nohup() -> Iterator[None]:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.usefixtures("nohup")
def test_an_ignored_hangup_stays_ignored() -> None:
    run = Run(signal.SIGHUP)
    assert run() == "done"
    with stop_at_once():
        os.kill(os.getpid(), signal.SIGHUP)
    with children_ignore_hangup():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("signum", SIGNALS)
def test_other_work_stops_at_once(signum: signal.Signals) -> None:
    cleaned = []
    with pytest.raises(KeyboardInterrupt), stop_at_once():
        try:
            os.kill(os.getpid(), signum)
            time.sleep(5.0)
        finally:
            if signum == signal.SIGHUP:  # the shell sends another one
                os.kill(os.getpid(), signum)
                time.sleep(0.1)
            cleaned.append(True)
    assert cleaned


def _ignores_hangup() -> bool:
    """Return True if this process, and each that it starts, ignores SIGHUP."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return bool(int(fields["SigIgn"], 16) & 1 << (signal.SIGHUP - 1))


def test_the_processes_of_ray_ignore_a_hangup() -> None:
    received: list[int] = []
    handler: Callable[..., None] = lambda signum, _: received.append(signum)  # noqa: E731
    previous = [signal.signal(s, handler) for s in (signal.SIGHUP, signal.SIGTERM)]
    try:
        with children_ignore_hangup():
            assert _ignores_hangup()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as `ray.init` replaces it
        assert not _ignores_hangup()
        for signum in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        time.sleep(0.1)
        assert set(received) == {signal.SIGHUP, signal.SIGTERM}
    finally:
        for signum, old in zip((signal.SIGHUP, signal.SIGTERM), previous, strict=True):
            signal.signal(signum, old)


def test_a_thread_may_start_ray() -> None:
    entered = []

    def start() -> None:
        with children_ignore_hangup():
            entered.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert entered


@pytest.mark.parametrize("closes", [True, False])
def test_a_terminal_that_closes_while_children_start_is_noticed(
    closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminals = iter([True, not closes])
    monkeypatch.setattr(interrupts, "_has_terminal", lambda: next(terminals))
    with suppress(KeyboardInterrupt), stop_at_once():
        with children_ignore_hangup():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not closes
        return
    assert closes
