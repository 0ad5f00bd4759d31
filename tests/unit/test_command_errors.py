"""Exit codes and messages of a command that the system refuses a path."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.storage import DISK_FULL_ERRNOS, PERMANENT_ERRNOS


def failing(error: BaseException) -> Command:
    """Return a command that raises an error."""

    def main(*_: object) -> None:
        """Fail."""
        raise error

    return Command("status", main, examples=())


@pytest.mark.parametrize("number", [*PERMANENT_ERRNOS, *DISK_FULL_ERRNOS])
def test_a_refused_path_is_one_message(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(number, os.strerror(number), "/some/path")
    assert run_command(failing(error), []) == 2
    message = capsys.readouterr().err
    assert "/some/path" in message and os.strerror(number) in message
    assert len(message.splitlines()) == 1
    with pytest.raises(OSError):
        run_command(failing(error), ["debug=true"])


@pytest.mark.parametrize("write", [Path.mkdir, Path.touch, Path.read_text])
def test_a_path_below_a_file(
    write: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    def main(*_: object) -> None:
        """Use a path below a file."""
        write(tmp_path / "file/below")  # type: ignore[operator]

    assert run_command(Command("status", main, examples=()), []) == 2
    assert str(tmp_path / "file/below") in capsys.readouterr().err


def test_other_errors_of_the_system_are_bugs() -> None:
    for error in (OSError(errno.EBADF, "bad"), FileNotFoundError(errno.ENOENT, "missing")):
        with pytest.raises(OSError):
            run_command(failing(error), [])


def test_an_interruption_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(failing(KeyboardInterrupt("Resume with: x")), []) == 130
    assert "Resume with: x" in capsys.readouterr().err
