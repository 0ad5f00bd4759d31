"""Line files after crashes and on full disks, and retries of failed I/O."""

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.errors import StorageError
from imf_ray.files import (
    MAX_LINE_BYTES,
    JsonlWriter,
    append_line,
    read_lines,
    retry_io,
    retrying,
    write_if_changed,
)

LINES = st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=8), max_size=5)


@given(before=LINES, cut=st.integers(0, 12), after=LINES)
def test_an_incomplete_line_is_removed(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], cut: int, after: list[str]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "folder" / "log.jsonl"
    for line in before:
        append_line(path, line)
    assert read_lines(path) == before
    if before:
        content = path.read_bytes()
        path.write_bytes(content[: max(0, len(content) - cut)])
    complete = read_lines(path)
    assert complete == before[: len(complete)]
    writer = JsonlWriter(path)
    for line in after:
        writer.append(line)
    writer.close()
    assert read_lines(path) == [*complete, *after]


def test_only_the_end_of_a_long_file_is_searched(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x\n" * MAX_LINE_BYTES + "cut o")
    append_line(path, "y")
    assert path.read_text() == "x\n" * MAX_LINE_BYTES + "y\n"


def test_a_line_that_does_not_fit_is_an_error_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_line(path, "fits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # largest file in bytes
    try:
        with pytest.raises(StorageError, match=r"log cannot be written: .*No space left"):
            append_line(path, "does not fit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_lines(path) == ["fits"]
    append_line(path, "fits again")
    assert read_lines(path) == ["fits", "fits again"]


def test_failed_io_is_retried_unless_it_is_permanent(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [StorageError("full"), OSError("away")]

    def write(text: str = "written") -> str:
        if errors:
            raise errors.pop()
        return text

    monkeypatch.setattr("imf_ray.files.RETRY_DELAYS_S", (0.0, 0.0))
    assert retry_io(write) == "written"
    errors = [StorageError("full")]
    assert retrying(write)(text="again") == "again"
    errors = [StorageError("full")] * 3
    with pytest.raises(StorageError, match="full"):
        retry_io(write)
    for permanent in (ValueError("not storage"), FileNotFoundError("waiting does not help")):
        errors = [permanent]
        with pytest.raises(type(permanent)):
            retry_io(write)


def test_unchanged_content_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_if_changed(path, "one")
    inode = path.stat().st_ino
    write_if_changed(path, "one")
    assert path.stat().st_ino == inode
    write_if_changed(path, "two")
    assert path.read_text() == "two"
