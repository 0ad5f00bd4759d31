"""Files of JSON lines after crashes, on full disks and with several writers; retries of I/O."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.errors import StorageError, UserError
from imf_ray.files import (
    BLOCK_BYTES,
    JsonlWriter,
    append_line,
    parse_json,
    read_json_lines,
    retry_io,
    retrying,
    write_if_changed,
)
from imf_ray.storage import PERMANENT_ERRNOS

LINES = st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=8), max_size=5)


def _read(path: Path) -> list[Any]:
    return read_json_lines(path, lambda value: value).rows


@given(before=LINES, cut=st.integers(0, 12), after=LINES)
def test_an_incomplete_line_is_removed(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], cut: int, after: list[str]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "folder" / "log.jsonl"
    for line in before:
        append_line(path, json.dumps(line))
    assert _read(path) == before
    if before:
        content = path.read_bytes()
        path.write_bytes(content[: max(0, len(content) - cut)])
    complete = _read(path)
    assert complete == before[: len(complete)]
    writer = JsonlWriter(path)
    for line in after:
        writer.append(json.dumps(line))
    writer.close()
    assert _read(path) == [*complete, *after]


@pytest.mark.parametrize(
    "incomplete", [b"cut o", b"x" * (BLOCK_BYTES - 1), b"\0" * 3 * BLOCK_BYTES]
)
def test_an_incomplete_line_of_any_length_is_removed_and_named(
    tmp_path: Path, incomplete: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"1\n" * BLOCK_BYTES + incomplete)
    append_line(path, "2")
    assert path.read_bytes() == b"1\n" * BLOCK_BYTES + b"2\n"
    assert str(path) in caplog.text


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [JsonlWriter(path) for _ in range(3)]
    for number in range(30):
        writers[number % 3].append(str(number))
    assert _read(path) == list(range(30))


DAMAGED = {
    "torn": b'{"step": 1, "lo',
    "two lines run together": b'{"step": 1}{"step": 2}',
    "one line inside another": b'{"step": 1, "loss": 0.{"step": 2, "loss": 0.5}',
    "zeros after a loss of power": b"\0" * 4096,
    "zeros in front": b'\0\0{"step": 1}',
    "not UTF-8": b'{"step": "\xff\xfe"}',
    "not a dictionary": b"[1, 2]",
    "a number": b"7",
    "without the key": b'{"stop": 1}',
    "a value of another type": b'{"step": null}',
    "empty": b"",
    "deeply nested": b"[" * 100_000,
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_line_is_skipped_counted_and_named_once(
    tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n{"st')
    for _ in range(2):
        lines = read_json_lines(path, lambda row: int(row["step"]))
        assert (lines.rows, lines.num_invalid) == ([1, 3], 1)
    assert lines.end == path.stat().st_size - len('{"st')
    assert caplog.text.count(str(path)) == 1 and f"line 2 of {path}" in caplog.text
    assert read_json_lines(path, int, offset=lines.end) == ([], 0, lines.end)


def test_a_damaged_line_after_an_offset_has_its_number_in_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"1\n2\nthree\n4\n")
    assert read_json_lines(path, int, offset=2) == ([2, 4], 1, len(path.read_bytes()))
    assert f"line 3 of {path}" in caplog.text


@pytest.mark.parametrize("text", ["", "\0\0", '{"seeds": [1', "[]", '{"seeds": null}', "[" * 10**5])
def test_a_damaged_json_file_is_one_error_with_the_file_and_the_way_out(text: str) -> None:
    with pytest.raises(UserError, match=r"folder/file\.json is damaged .* Delete it\."):
        parse_json(
            text, lambda value: sorted(value["seeds"]), Path("folder/file.json"), "Delete it."
        )


def test_a_line_that_does_not_fit_is_an_error_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_line(path, '"fits"')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, before[1]))  # largest file in bytes
    try:
        with pytest.raises(StorageError, match=r"log cannot be written: .*No space left.* disk /"):
            append_line(path, '"does not fit"')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _read(path) == ["fits"]
    append_line(path, '"fits again"')
    assert _read(path) == ["fits", "fits again"]


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
    refused = [OSError(number, os.strerror(number)) for number in PERMANENT_ERRNOS]
    for permanent in (ValueError("not storage"), FileNotFoundError("it stays away"), *refused):
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
