"""Checks episode files in child processes, because a damaged file can hang or kill its reader.

`python -m imf_ray.data.check_pool FORMAT FEATURES` runs a child process. It reads one address of an
episode per line from standard input and writes one result per line to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

from imf_ray.data.channel_order import StoredImages
from imf_ray.data.episodes import EpisodeMetadata, Features, bad_episode_error
from imf_ray.data.readers import check_episode, reader_of
from imf_ray.data.running_stats import RunningStats
from imf_ray.errors import StorageError, UserError
from imf_ray.storage import AnyPath, is_remote, parse_path

START_TIMEOUT_S = 120.0
"""Maximum number of seconds until a child process is ready."""
MAX_CHECKERS = 16
"""Maximum number of child processes.

With more, a slow disk or network could delay each of them until its check times out.
"""
MIN_TIMEOUT_S, MIN_BYTES_PER_S = 10.0, 1e6
"""The time limit of a check is `MIN_TIMEOUT_S` plus the size of the file / `MIN_BYTES_PER_S`."""
MEMORY_BYTES = 16 << 30
"""Maximum address space of a child process. A file that needs more memory is invalid."""
READY_LINE = b"ready\n"
"""First line of a child process, written before its results."""
CheckResult = EpisodeMetadata | str
"""Description of a file that can be read, or an error message that says why it cannot."""


def check_files(
    paths: Sequence[AnyPath], format: str, features: Mapping[str, list[str]]
) -> Iterator[tuple[AnyPath, CheckResult]]:
    """Check episodes in parallel and yield (path, result) in the order in which checks finish.

    Args:
        format: a name in `readers.FORMATS`, or `auto`.
        features: value of `data.features`.

    Raises:
        StorageError: a file under a URL cannot be read.
    """
    if not paths:
        return
    count = max(1, min(len(os.sched_getaffinity(0)), len(paths), MAX_CHECKERS))
    children = [_CheckerProcess(format, features) for _ in range(count)]
    free: queue.SimpleQueue[_CheckerProcess] = queue.SimpleQueue()
    for child in children:
        free.put(child)

    def check(path: AnyPath) -> tuple[AnyPath, CheckResult]:
        child = free.get()
        try:
            return path, child.check(path)
        finally:
            free.put(child)

    pool = ThreadPoolExecutor(count)
    try:
        for done in as_completed([pool.submit(check, path) for path in paths]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()  # if the caller stops early, it does not wait for slow files
        pool.shutdown(wait=True)
        for child in children:
            child.close()


def invalid_reason(result: CheckResult) -> str | None:
    """Return why a file is invalid: it cannot be read, or runs need one of its bad parts."""
    return result if isinstance(result, str) else result.required_problem


def metadata_from_dict(values: dict[str, Any]) -> EpisodeMetadata:
    """Make an `EpisodeMetadata` from its JSON form."""
    features = Features.from_dict(values["features"])
    images = {camera: StoredImages(**fields) for camera, fields in values["images"].items()}
    tuples = {name: tuple(values[name]) for name in ("action_spaces", "objects", "unused_datasets")}
    stats = {
        name: RunningStats(
            part["count"], *(tuple(part[key]) for key in ("min", "max", "mean", "m2"))
        )
        for name, part in values["stats"].items()
    }
    parts = {"features": features, "images": images, "stats": stats}
    return EpisodeMetadata(**{**values, **tuples, **parts})


class _CheckerProcess:
    """A child process that checks files. It is started on first use, and again after it died."""

    def __init__(self, format: str, features: Mapping[str, list[str]]) -> None:
        self._format = format
        arguments = [format, json.dumps(features)]
        self._command = [sys.executable, "-m", "imf_ray.data.check_pool", *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._start_lock, self._killed = threading.Lock(), False

    def check(self, path: AnyPath) -> CheckResult:
        """Check one file, within a time limit."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # the process died between two files, so neither file is the cause
        process = self._process or self._start()
        try:
            timeout_s = MIN_TIMEOUT_S + reader_of(self._format).check_bytes(path) / MIN_BYTES_PER_S
        except OSError as error:
            if is_remote(path):
                raise StorageError(f"{path} cannot be read: {error}") from error
            return str(bad_episode_error(path, f"it cannot be read ({error})"))
        assert process.stdin is not None
        # If the process has died, `_read_line` returns an empty line.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            process.stdin.flush()
        line = self._read_line(process, timeout_s)
        if line:
            answer = json.loads(line)
            return answer["bad"] if "bad" in answer else metadata_from_dict(answer["info"])
        reason = f"reading it takes more than {timeout_s:.0f} s"
        if line is not None:
            reason = f"reading it killed the reader (exit code {process.wait()})"
        self.close()
        return str(bad_episode_error(path, reason))

    def kill(self) -> None:
        """Kill the process and prevent another start. Other threads may be using the process."""
        with self._start_lock:
            self._killed = True
            process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Kill the process and close its pipes. The next check starts a new process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        with self._start_lock:
            if self._killed:
                raise RuntimeError("The check was stopped.")
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # only the parent handles Ctrl-C
            )
        if self._read_line(process, START_TIMEOUT_S) != READY_LINE:
            self.close()
            raise RuntimeError(f"The reader process did not start: {' '.join(self._command)}")
        return process

    @staticmethod
    def _read_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
        """Return the next line of a child's output: empty if it died, None after the timeout."""
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        return process.stdout.readline() if poll.poll(1e3 * timeout_s) else None


def main(format: str, features: Mapping[str, list[str]]) -> None:
    """Check each episode from standard input and write the result as a line of JSON."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # redirect what libraries print to stderr, so that stdout has only answers
    answers.write(READY_LINE)
    for line in sys.stdin:
        path = parse_path(json.loads(line))
        try:
            answer = json.dumps({"info": asdict(check_episode(path, format, features))})
        except UserError as error:
            answer = json.dumps({"bad": str(error)})
        except Exception as error:  # any other exception also makes the file invalid
            reason = f"it cannot be read ({type(error).__name__}: {error})"
            answer = json.dumps({"bad": str(bad_episode_error(path, reason))})
        answers.write(answer.encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
