"""Checks episode files in child processes, which a damaged file can hang or kill without harm.

`python -m imf_ray.data.checking FORMAT` is the child: a path a line in, a verdict a line out.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imf_ray.data.episodes import EpisodeInfo, bad_episode, check_episode
from imf_ray.errors import UserError

LEAST_LIMIT_S = 10.0
LEAST_BYTES_PER_S = 5e6
"""A check takes longer than this only if it hangs."""
MEMORY_BYTES = 16 << 30
"""Address space of a child: a file that claims more is bad."""


@dataclass(frozen=True)
class Verdict:
    """On one file."""

    path: Path
    found: EpisodeInfo | str
    """What it holds, or the reason why it is bad."""
    settled: bool = True
    """False where the child hung or died, which need not be the file's fault: to be asked again."""


def check_files(paths: Sequence[Path], format: str) -> Iterator[Verdict]:
    """The verdict on each file as it comes."""
    count = max(1, min(os.cpu_count() or 1, len(paths)))
    children: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    for _ in range(count):
        children.put(_Child(format))

    def check(path: Path) -> Verdict:
        child = children.get()
        try:
            return child.check(path)
        finally:
            children.put(child)

    try:
        with ThreadPoolExecutor(count) as pool:
            for done in as_completed([pool.submit(check, path) for path in paths]):
                yield done.result()
    finally:
        for _ in range(count):
            children.get().close()


def info_from_dict(values: dict[str, Any]) -> EpisodeInfo:
    """An index row from what JSON made of it."""
    sizes = {camera: tuple(size) for camera, size in values["cameras"].items()}
    lists = {name: tuple(values[name]) for name in ("action_spaces", "objects")}
    return EpisodeInfo(**{**values, **lists, "cameras": sizes})


class _Child:
    """A process that checks files, started when there is one and again after it died."""

    def __init__(self, format: str) -> None:
        self._command = [sys.executable, "-m", "imf_ray.data.checking", format]
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, path: Path) -> Verdict:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        limit = LEAST_LIMIT_S + path.stat().st_size / LEAST_BYTES_PER_S
        process.stdin.write(json.dumps(str(path)).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], limit)[0]:
            self.close()
            reason = f"reading it takes more than {limit:.0f} s"
            return Verdict(path, str(bad_episode(path, reason)), settled=False)
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            reason = f"reading it killed the reader (exit code {code})"
            return Verdict(path, str(bad_episode(path, reason)), settled=False)
        answer = json.loads(line)
        return Verdict(path, answer["bad"] if "bad" in answer else info_from_dict(answer["info"]))

    def close(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.kill()
        self._process.wait()
        self._process = None


def main(format: str) -> None:
    """Answer each path on standard input with a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            answer = {"info": asdict(check_episode(Path(json.loads(line)), format))}
        except UserError as error:
            answer = {"bad": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
