"""Output to a terminal, a pipe, a file, and to none of them."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.progress_bars import ProgressBars
from imf_ray.terminal import StandardStream, console, open_missing_streams


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


TEXT = "epoch 0.52  loss 0.1234  lr 1.0e-04  grad 0.50  success 0.75 [0.60, 0.86] of 20"


def last_screen(width: int, height: int, num_finished: int, num_others: int) -> list[str]:
    """Return the lines that are drawn for trials with long names."""
    output = io.StringIO()
    console = Console(
        file=output, width=width, height=height, force_terminal=True, color_system=None
    )
    with ProgressBars(console) as bars:
        for number in range(num_finished + num_others):
            step = 3000 if number < num_finished else 1200
            name = f"{number:05d}-n_emb_96-größe_大-train.batch_size_32-lr_0.0001"
            bars.update(name, step, total=3000, text=TEXT)
    screen = output.getvalue().rpartition("\x1b[2K")[2]
    return [line.rstrip() for line in screen.partition("\x1b[?25h")[0].splitlines()]


@pytest.mark.parametrize("width", [80, 110, 160])
def test_bars_show_everything_at_every_width(width: int) -> None:
    lines = last_screen(width, 24, num_finished=0, num_others=2)
    assert all(cell_len(line) <= width for line in lines)
    words = " ".join(" ".join(lines).split())
    assert words.count(" ".join(TEXT.split())) == 2 and words.count("1200/3000 0:00:00") == 2
    assert len({line.split()[0] for line in lines if line.startswith("0000")}) == 2


def test_unfinished_bars_stay_on_a_low_terminal() -> None:
    lines = last_screen(80, 24, num_finished=40, num_others=3)
    assert len(lines) < 24
    assert {"00040", "00041", "00042"} <= {line[:5] for line in lines}
    shown = sum(line.startswith("000") for line in lines)
    assert lines[-1] == f"{43 - shown} more, {43 - shown} of them finished"


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


class Disk(io.RawIOBase):
    """A file of a disk with little space, which takes at most 20 bytes at a time."""

    def __init__(self, size: int, number: int = errno.ENOSPC) -> None:
        self.content, self.size, self._number = b"", size, number

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        written = bytes(content)[: min(20, self.size - len(self.content))]
        if not written:
            raise OSError(self._number, os.strerror(self._number))
        self.content += written
        return len(written)


def result_command(text: str) -> Command:
    """Return a command whose result is a text."""

    def main(*_: object) -> None:
        """Print."""
        console.print(text)

    return Command("status", main, examples=())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Disk, bool], None]]:
    """Make a disk's file the standard output, buffered as by default or not (PYTHONUNBUFFERED)."""
    with (  # what is lost is redirected to the null device
        open(os.devnull, "wb") as null,
        monkeypatch.context() as patch,
    ):

        def open_stdout(disk: Disk, buffered: bool) -> None:
            binary = io.BufferedWriter(disk, 64) if buffered else disk
            stdout = io.TextIOWrapper(binary, encoding="utf-8", write_through=not buffered)
            patch.setattr(disk, "fileno", null.fileno, raising=False)
            patch.setattr(sys, "stdout", stdout)

        yield open_stdout


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("size", [0, 30, 100])
def test_a_result_that_a_full_disk_does_not_take_is_an_error(
    size: int,
    buffered: bool,
    number: int,
    opened: Callable[[Disk, bool], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for argv in (["--help"], ["--print-config"], []):
        opened(Disk(size, number), buffered)
        assert run_command(result_command("result " * 20), argv) == 2
        assert os.strerror(number) in capsys.readouterr().err


@pytest.mark.parametrize("buffered", [True, False])
def test_a_disk_that_recovers_gets_the_result(
    buffered: bool, opened: Callable[[Disk, bool], None], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Disk(0)
    opened(disk, buffered)
    console.print("progress " * 20)
    disk.size = 1000
    assert run_command(result_command("result"), []) == 0
    assert disk.content.endswith(b"result\n") and not capsys.readouterr().err


def test_closed_and_missing_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StandardStream("stdout")
    for missing in (None, closed_stream()):
        monkeypatch.setattr(sys, "stdout", missing)
        print("dropped", file=stream, flush=True)
        assert not stream.isatty()


@pytest.mark.parametrize(("name", "number"), [("stdin", 0), ("stdout", 1), ("stderr", 2)])
def test_python_s_missing_streams_are_opened(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has none if the caller has closed the descriptor; `faulthandler` and Ray need one."""
    monkeypatch.setattr(sys, name, None)
    open_missing_streams()
    assert getattr(sys, name).fileno() == number


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
