"""Requests to stop: which signal stops what, and what the processes of Ray inherit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

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


def _dispositions() -> dict[str, int]:
    """Return the masks of blocked and ignored signals of this process."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[name], 16) for name in ("SigBlk", "SigIgn")}


def test_a_hangup_while_ray_starts_is_handled_afterwards() -> None:
    """Child processes inherit that SIGHUP is ignored. This process acts on it a little later."""
    steps: list[str] = []
    handler: Callable[..., None] = lambda *_: steps.append("handled")  # noqa: E731
    previous = [signal.signal(s, handler) for s in (signal.SIGHUP, signal.SIGTERM)]
    try:
        with children_ignore_hangup():
            assert _dispositions()["SigIgn"] & 1 << (signal.SIGHUP - 1)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as `ray.init` replaces it
            os.kill(os.getpid(), signal.SIGHUP)
            steps.append("started")
        assert steps == ["started", "handled"]
        assert signal.getsignal(signal.SIGTERM) is handler
        assert not _dispositions()["SigBlk"] & 1 << (signal.SIGHUP - 1)
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
