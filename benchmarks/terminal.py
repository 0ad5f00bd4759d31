"""Records commands on a terminal of 80 columns, and prints how long each showed nothing new.

    python -m benchmarks.terminal --out DIR [--only demo,train]

The commands are those of a first session: demo, collect, train, evaluate with a video, compare and
tune, each in the folder `--out` and with what the earlier ones made. Each becomes a recording
`NAME.cast` in the format of asciinema (https://docs.asciinema.org/manual/asciicast/v2), which
`asciinema play` shows again.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import itertools
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

COLUMNS, ROWS = 80, 24
CHUNK_BYTES = 65536
SMALL_TRAINING = "train.max_steps=200 train.save_freq=100 train.rollout_num_episodes=4"
COMMANDS = {
    "demo": "demo",
    "collect": "collect data collect.num_episodes=8",
    "train": f"train recipe=cpu_transfer data.dataset_dir=data {SMALL_TRAINING} "
    "train.rollout_validate_on_checkpoint=true run_name=first",
    "evaluate": "evaluate runs/first evaluate.num_episodes=8 evaluate.video=all",
    "compare": "compare policies/sim_transfer runs/first evaluate.num_episodes=8",
    "tune": f"tune quickstart data.dataset_dir=data {SMALL_TRAINING} run_name=sweep",
}
"""Arguments of `imf-ray` for each recording."""


def record(arguments: list[str], folder: Path, recording: Path) -> list[tuple[float, str]]:
    """Run a command on a terminal, write its recording, and return its output.

    Returns:
        The time in seconds since the start and the text of each piece of output.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "imf_ray", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    os.close(terminal)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    output: list[tuple[float, str]] = []
    while True:
        try:
            content = os.read(controller, CHUNK_BYTES)
        except OSError:  # the last process with the terminal has ended
            break
        if not content:
            break
        output.append((time.monotonic() - start, decoder.decode(content)))
    os.close(controller)
    code = process.wait()
    output.append((time.monotonic() - start, ""))
    with recording.open("w") as file:
        header = {"version": 2, "width": COLUMNS, "height": ROWS}
        file.write(json.dumps({**header, "title": f"imf-ray {' '.join(arguments)}"}) + "\n")
        for seconds, text in output:
            file.write(json.dumps([round(seconds, 3), "o", text]) + "\n")
    if code != 0:
        raise RuntimeError(f"imf-ray {' '.join(arguments)} ended with code {code}: {recording}")
    return output


def longest_pause(output: list[tuple[float, str]]) -> tuple[float, float]:
    """Return the length in seconds of the longest pause, and when it began."""
    times = [0.0, *(seconds for seconds, _ in output)]
    return max((after - before, before) for before, after in itertools.pairwise(times))


def main() -> None:
    """Record the commands, and print a table of their times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(COMMANDS), help="names of commands")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("| command | s | first output after s | longest pause s | which began after s |")
    print("|---|---|---|---|---|")
    for name in arguments.only.split(","):
        output = record(COMMANDS[name].split(), arguments.out, arguments.out / f"{name}.cast")
        pause, began = longest_pause(output)
        first, end = output[0][0], output[-1][0]
        print(f"| {name} | {end:.1f} | {first:.1f} | {pause:.1f} | {began:.1f} |", flush=True)


if __name__ == "__main__":
    main()
