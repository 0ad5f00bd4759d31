"""Output to a terminal, a pipe, a file, and to none of them."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest
from rich.console import Console

from imf_ray.terminal import ProgressBars, StandardStream


def test_plain_lines_without_a_terminal() -> None:
    output = io.StringIO()
    with ProgressBars(Console(file=output, width=80), lines=4) as bars:
        for completed in range(1, 9):
            bars.update("expert", completed, total=8, text=f"success {completed}")
    lines = output.getvalue().splitlines()
    assert lines == [f"expert: {n}/8, success {n}" for n in (2, 4, 6, 8)]


def test_bar_on_a_terminal() -> None:
    output = io.StringIO()
    with ProgressBars(Console(file=output, width=80, force_terminal=True)) as bars:
        bars.update("expert", 1, total=2, text="[brackets] stay")
        bars.update("expert", 2, total=2, text="[brackets] stay")
    assert "2/2" in output.getvalue() and "[brackets] stay" in output.getvalue()


class Gone(io.TextIOWrapper):
    """A stream whose writes fail with an error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(io.FileIO(os.devnull, "wb"), encoding="ascii")
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE, errno.ENOSPC, errno.EBADF])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_terminal_that_is_gone_ends_nothing(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StandardStream(name)
    monkeypatch.setattr(sys, name, Gone(OSError(number, os.strerror(number))))
    print("dropped", file=stream, flush=True)
    Console(file=stream).print("dropped")
    with ProgressBars(Console(file=stream, force_terminal=True)) as bars:
        bars.update("dropped", 1, total=2)
    assert not stream.isatty()


def test_a_broken_pipe_stays_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first failure nothing is left that Python would flush at exit."""
    reader, writer = os.pipe()
    os.close(reader)
    stdout = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    print("dropped", file=StandardStream("stdout"), flush=True)
    stdout.close()


def test_closed_and_missing_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StandardStream("stdout")
    for missing in (None, closed_stream()):
        monkeypatch.setattr(sys, "stdout", missing)
        print("dropped", file=stream, flush=True)
        assert not stream.isatty()


def closed_stream() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("text", ["größe", "run 🤖", "e\u0301", "\udce9"])
def test_an_encoding_that_lacks_a_character(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    ascii_stream = io.TextIOWrapper(content, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", ascii_stream)
    print(text, file=StandardStream("stdout"))
    Console(file=StandardStream("stdout")).print(text)
    expected = text.encode("ascii", "backslashreplace").decode()
    assert content.getvalue().decode().splitlines() == [expected] * 2
