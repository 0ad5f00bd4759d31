"""Checks episode files in child processes, which a damaged file can hang or kill without harm.

`python -m imf_ray.data.check_pool FORMAT` is the child: a path a line in, a verdict a line out.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

from imf_ray.data.episodes import EpisodeMetadata, bad_episode_error, check_episode
from imf_ray.data.hdf5 import file_size
from imf_ray.data.running_stats import RunningStats
from imf_ray.errors import StorageError, UserError
from imf_ray.storage import AnyPath, is_remote, parse_path

START_LIMIT_S = 120.0
MAX_CHECKERS = 16
"""More would share out a disk or a network until each looks as if it hung."""
MIN_TIMEOUT_S, LEAST_BYTES_PER_S = 10.0, 1e6
"""A check that takes longer than the first and a second for so many bytes hangs."""
MEMORY_BYTES = 16 << 30
"""Address space of a child: a file that claims more is bad."""
READY_LINE = b"ready\n"
CheckResult = EpisodeMetadata | str
"""On a file: what it holds, or the reason why it is bad."""


def check_files(paths: Sequence[AnyPath], format: str) -> Iterator[tuple[AnyPath, CheckResult]]:
    """The verdict on each file as it comes.

    Raises:
        StorageError: a file under a URL is out of reach.
    """
    if not paths:
        return
    count = max(1, min(len(os.sched_getaffinity(0)), len(paths), MAX_CHECKERS))
    children = [_CheckerProcess(format) for _ in range(count)]
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
            child.kill()  # whoever leaves early need not wait for a slow file
        pool.shutdown(wait=True)
        for child in children:
            child.close()


def info_from_dict(values: dict[str, Any]) -> EpisodeMetadata:
    """An index row from what JSON made of it."""
    sizes = {camera: tuple(size) for camera, size in values["cameras"].items()}
    lists = {name: tuple(values[name]) for name in ("action_spaces", "objects", "unread")}
    moments = {
        name: RunningStats(
            found["count"], *(tuple(found[key]) for key in ("min", "max", "mean", "squares"))
        )
        for name, found in values["moments"].items()
    }
    return EpisodeMetadata(**{**values, **lists, "cameras": sizes, "moments": moments})


class _CheckerProcess:
    """A process that checks files, started when there is one and again after it died."""

    def __init__(self, format: str) -> None:
        self._command = [sys.executable, "-m", "imf_ray.data.check_pool", format]
        self._process: subprocess.Popen[bytes] | None = None
        self._starting, self._is_over = threading.Lock(), False

    def check(self, path: AnyPath) -> CheckResult:
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it died between two files: neither is to blame
        process = self._process or self._start()
        try:
            limit = MIN_TIMEOUT_S + file_size(path) / LEAST_BYTES_PER_S
        except OSError as error:
            if is_remote(path):
                raise StorageError(f"{path} cannot be read: {error}") from error
            return str(bad_episode_error(path, f"it cannot be read ({error})"))
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: there is no answer either
            process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            process.stdin.flush()
        line = self._line(process, limit)
        if line:
            answer = json.loads(line)
            return answer["bad"] if "bad" in answer else info_from_dict(answer["info"])
        reason = f"reading it takes more than {limit:.0f} s"
        if line is not None:
            reason = f"reading it killed the reader (exit code {process.wait()})"
        self.close()
        return str(bad_episode_error(path, reason))

    def kill(self) -> None:
        """End what it is doing for somebody else, and let nobody start it again."""
        with self._starting:
            self._is_over = True
            process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        with self._starting:
            if self._is_over:
                raise RuntimeError("The check was ended.")
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C is for the parent
            )
        if self._line(process, START_LIMIT_S) != READY_LINE:
            self.close()
            raise RuntimeError(f"The reader does not start: {' '.join(self._command)}")
        return process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], limit_s: float) -> bytes | None:
        """The next line of a child's output: empty if it died, None if it takes too long."""
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        return process.stdout.readline() if poll.poll(1e3 * limit_s) else None


def main(format: str) -> None:
    """Answer each path on standard input with a line of JSON."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    answers.write(READY_LINE)
    for line in sys.stdin:
        path = parse_path(json.loads(line))
        try:
            answer = json.dumps({"info": asdict(check_episode(path, format))})
        except UserError as error:
            answer = json.dumps({"bad": str(error)})
        except Exception as error:  # whatever a file brings about is a verdict on it
            reason = f"it cannot be read ({type(error).__name__}: {error})"
            answer = json.dumps({"bad": str(bad_episode_error(path, reason))})
        answers.write(answer.encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
