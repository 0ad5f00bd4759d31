"""How fast windows come out of episode files, what that costs, and what a training step notices.

    python -m benchmarks.data --lerobot ~/lerobot/bin/python

Each case is a process of its own that makes the same batches (`benchmarks.data_loaders`,
`benchmarks.lerobot_loader`), one after the other, data set by data set; it is watched from outside:
windows per second, CPU-milliseconds per window and the peak of the proportional set size, summed
over the process and all it started. Then the same with a sleep after each batch that stands for a
step on an accelerator. What is recorded under `--work` is not done again, so that the command goes
on where it was stopped; at the end it prints the tables of docs/results/data.md.

LeRobot lives in an environment of its own (`pip install lerobot h5py`, and FFmpeg for its videos).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py

from benchmarks.batch_consumer import BATCH, BEGIN, END
from benchmarks.result_log import commit, note, read_notes
from benchmarks.process_stats import cpu_times, proportional_bytes, stop
from imf_ray.data.episodes import DEFLATE_LEVEL, episode_path
from imf_ray.data.readers import IMAGES
from imf_ray.files import atomic_rename

ROOT = Path(__file__).parents[1]
STEP_S = 0.1
POLL_S, LOOK_SHARE = 0.5, 0.02
"""How often CPU times are asked for, and of a core what adding up memory may take: the more a
contender maps, the longer a look keeps the core that it would use."""
LIMIT_S = 1800
LOADERS = ("memory", "imf_ray", "h5py")
LEROBOT = ("lerobot-image", "lerobot-video")


class CaseError(Exception):
    """A case did not come to its end; the message says why."""


@dataclass(frozen=True)
class Case:
    """One process that loads."""

    size: int
    """Side of the pictures."""
    files: str
    """`raw` or `deflated`."""
    episodes: int
    loader: str
    workers: int
    step_s: float


@dataclass(frozen=True)
class Measured:
    """What was seen of it."""

    windows_per_s: float
    cpu_ms_per_window: float
    """Of all its processes, from the end of the warm-up on."""
    peak_pss_gib: float


def cases(sizes: Sequence[int], episodes: Sequence[int], lerobot: bool) -> Iterator[Case]:
    """All of them, those that are compared with each other side by side.

    LeRobot's images and videos have a compression of their own: they are compared with raw files.
    """
    for size in sizes:
        for count in episodes:
            for files in ("raw", "deflated"):
                rivals = LEROBOT if lerobot and files == "raw" else ()
                for loader in (*LOADERS, *rivals):
                    yield Case(size, files, count, loader, 1, 0.0)
        for loader in ("imf_ray", "h5py", *(LEROBOT if lerobot else ())):
            yield Case(size, "raw", min(episodes), loader, 2, 0.0)
        for loader in (*LOADERS, *(LEROBOT if lerobot else ())):
            yield Case(size, "raw", min(episodes), loader, 1, STEP_S)


def prepare(work: Path, case: Case, real: int, lerobot: str | None) -> Path:
    """The case's data, made if they are not there: `real` recorded episodes, and links to them."""
    home = work / str(case.size)
    raw, deflated = home / "raw", home / "deflated"
    if not episode_path(raw, real - 1).exists():
        options = [f"data.dataset_dir={raw}", f"task.image_size={case.size}"]
        _call(sys.executable, "-m", "imf_ray.collect", *options, f"collect.num_episodes={real}")
    deflated.mkdir(exist_ok=True)
    for number in range(real):
        if not episode_path(deflated, number).exists():
            _deflate(episode_path(raw, number), episode_path(deflated, number))
    for folder in (raw, deflated):
        for number in range(real, case.episodes):
            if not episode_path(folder, number).exists():
                os.link(episode_path(folder, number % real), episode_path(folder, number))
    if case.loader not in LEROBOT:
        return home / case.files
    kind = case.loader.removeprefix("lerobot-")
    converted = home / f"{case.loader}-{case.episodes}"
    if not converted.exists():
        assert lerobot is not None
        partial = converted.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        module = ("-m", "benchmarks.lerobot_loader", "convert", str(raw), str(partial))
        _call(lerobot, *module, "--kind", kind, "--count", str(case.episodes))
        atomic_rename(partial, converted)
    return converted


def measure(case: Case, data: Path, seconds: float, lerobot: str | None) -> Measured:
    """Run a case and watch it.

    Raises:
        CaseError: it ended before it should have, or not at all.
    """
    if case.loader in LEROBOT:
        assert lerobot is not None
        command = [lerobot, "-m", "benchmarks.lerobot_loader", "load", str(data)]
    else:
        command = [sys.executable, "-m", "benchmarks.data_loaders", case.loader, str(data)]
        command += ["--count", str(case.episodes)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        command += ["--folder", folder, "--seconds", str(seconds), "--step-s", str(case.step_s)]
        command += ["--workers", str(case.workers)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            peak, begun, times, next_look = 0.0, None, {}, 0.0
            deadline = time.monotonic() + LIMIT_S
            while not (Path(folder) / END).exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise CaseError(log.read().decode()[-3000:])
                times |= cpu_times(process.pid)
                if begun is None and (Path(folder) / BEGIN).exists():
                    begun = dict(times)
                if (look := time.monotonic()) >= next_look:
                    peak = max(peak, proportional_bytes(process.pid))
                    next_look = time.monotonic() + (time.monotonic() - look) / LOOK_SHARE
                time.sleep(POLL_S)
            times |= cpu_times(process.pid)
            spent = sum(times.values()) - sum((begun or {}).values())
            result = json.loads((Path(folder) / END).read_text())
            process.wait(LIMIT_S)
        finally:
            stop(process)
    return Measured(
        windows_per_s=result["windows"] / result["seconds"],
        cpu_ms_per_window=1e3 * spent / result["windows"],
        peak_pss_gib=peak / 2**30,
    )


def loading_table(found: dict[Case, Measured]) -> str:
    """Windows per second without a step, and what they cost."""
    columns = ["pictures", "files", "episodes", "readers", "loader"]
    columns += ["windows/s", "CPU-ms/window", "peak GiB", "imf_ray / it"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for case, seen in found.items():
        if case.step_s:
            continue
        ours = found.get(Case(**{**asdict(case), "loader": "imf_ray"}))
        ratio = "" if ours is None else f"{ours.windows_per_s / seen.windows_per_s:.2f}"
        cells = [f"{case.size}x{case.size}", case.files, str(case.episodes), str(case.workers)]
        cells += [case.loader, f"{seen.windows_per_s:.0f}", f"{seen.cpu_ms_per_window:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{seen.peak_pss_gib:.2f}", ratio]) + " |")
    return "\n".join(lines)


def step_table(found: dict[Case, Measured]) -> str:
    """Steps per second beside a sleep, of those from memory."""
    lines = ["| pictures | loader | steps/s | / memory | CPU-ms/window |", "|---" * 5 + "|"]
    for case, seen in found.items():
        limit = found.get(Case(**{**asdict(case), "loader": "memory"}))
        if not case.step_s or limit is None:
            continue
        cells = [f"{case.size}x{case.size}", case.loader, f"{seen.windows_per_s / BATCH:.2f}"]
        cells += [
            f"{seen.windows_per_s / limit.windows_per_s:.3f}",
            f"{seen.cpu_ms_per_window:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _deflate(source: Path, target: Path) -> None:
    """A copy of an episode with its pictures as `collect.gzip_images=true` stores them."""
    partial = target.with_suffix(".partial")
    with h5py.File(source) as original, h5py.File(partial, "w") as file:
        for name, value in original.attrs.items():
            file.attrs[name] = value
        original.copy("action", file)
        original.copy("observations/qpos", file, "observations/qpos")
        for camera, frames in original[IMAGES].items():
            file.create_dataset(
                f"{IMAGES}/{camera}",
                data=frames[:],
                chunks=(1, *frames.shape[1:]),
                fletcher32=True,
                compression="gzip",
                compression_opts=DEFLATE_LEVEL,
            )
    atomic_rename(partial, target)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _call(*command: str) -> None:
    print("$", *command, flush=True)
    if subprocess.run(command, cwd=ROOT, env=_environment(), stdout=sys.stderr).returncode:
        raise CaseError(f"{' '.join(command)} failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_data"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 256])
    parser.add_argument("--episodes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--real", type=int, default=20, help="recorded; more are links to them")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured of each case")
    parser.add_argument("--lerobot", help="the Python of an environment with lerobot")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    log = work / "measured.jsonl"
    if arguments.lerobot:
        _call(arguments.lerobot, "-c", "import h5py, lerobot, torchcodec.decoders")
    found = read_notes(log, Case, Measured)
    failed: dict[Case, CaseError] = {}
    for case in cases(arguments.sizes, arguments.episodes, arguments.lerobot is not None):
        if case in found:
            continue
        try:
            data = prepare(work, case, arguments.real, arguments.lerobot)
            found[case] = measure(case, data, arguments.seconds, arguments.lerobot)
        except CaseError as error:  # the others do not depend on it
            failed[case] = error
            print(case, "failed:", error, flush=True)
            continue
        note(log, case, found[case])
        print(case, found[case], flush=True)
    print(loading_table(found), step_table(found), f"Commit {commit()}.", sep="\n\n")
    if failed:
        raise SystemExit(f"{len(failed)} cases failed: {'; '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
