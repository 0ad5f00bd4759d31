"""Starts the board next to a run or sweep (`train.board`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imf_ray.pages.addresses import describe_address
from imf_ray.schema import Config
from imf_ray.storage import display_path
from imf_ray.terminal import console


@contextmanager
def board_while_running(config: Config, folder: Path) -> Iterator[None]:
    """Serve the page of a run or sweep while the `with` block runs, if `train.board` is set.

    The board is a process of its own, with low priority. In a thread, it would take turns with the
    driver's other threads, and its memory and its errors would be those of the driver. It reads
    files alone, so it needs nothing of the driver. A pipe tells it that the driver has ended, in
    whatever way. A board that cannot start is reported, and the run continues without it.

    Args:
        folder: folder of the run or sweep, or the local copy of its URL.
    """
    if not config.train.board:
        yield
        return
    options = [config.board.host, json.dumps(config.board.port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "imf_ray.pages.live", display_path(folder.parent), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C and a closing terminal are for the run alone
    )
    # In a thread, so that the run does not wait for the board.
    arguments = (process, config.board.host, folder.name)
    threading.Thread(target=_announce, args=arguments, daemon=True).start()
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()


def _announce(process: subprocess.Popen[str], host: str, name: str) -> None:
    """Print the address of a run's page as soon as its board listens."""
    assert process.stdout is not None
    line = process.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended."}
    if "error" in answer:
        text = f"The run has no live page: {answer['error']}"
    else:
        text = describe_address(host, answer["port"], name, os.environ)
    console.print(text, soft_wrap=True)
