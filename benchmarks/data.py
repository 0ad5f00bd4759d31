"""Speed and cost of loading windows from episode files, and its effect on a training step.

    python -m benchmarks.data --lerobot ~/lerobot/bin/python

Each case is a separate process that makes the same batches (`benchmarks.data_loaders`,
`benchmarks.lerobot_loader`). Cases run one after the other and are measured from outside: windows
per second, CPU-milliseconds per window and the peak of the proportional set size, summed over the
process and its descendants. The cases then run again with a sleep after each batch, in place of a
step on an accelerator. Cases recorded under `--work` are skipped, so that the same command resumes.
At the end it prints the tables of docs/results/data.md.

LeRobot needs its own environment (`pip install lerobot h5py`, and FFmpeg for its videos).
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
from benchmarks.process_stats import cpu_times, kill_tree, proportional_bytes
from benchmarks.result_log import append_result, commit, read_results
from imf_ray.data.episodes import episode_path
from imf_ray.data.hdf5.layouts import IMAGES
from imf_ray.data.hdf5.writing import DEFLATE_LEVEL
from imf_ray.files import atomic_rename

ROOT = Path(__file__).parents[1]
STEP_S = 0.1
POLL_S = 0.5
"""Seconds between readings of the CPU times."""
MEMORY_CPU_FRACTION = 0.02
"""Fraction of a core for measuring memory, which takes longer the more memory a loader maps."""
LIMIT_S = 1800
LOADERS = ("memory", "imf_ray", "h5py")
LEROBOT = ("lerobot-image", "lerobot-video")


class CaseError(Exception):
    """A case failed; the message gives the reason."""


@dataclass(frozen=True)
class Case:
    """One measured loader process."""

    size: int
    """Side of the images in pixels."""
    files: str
    """`raw` or `deflated`."""
    episodes: int
    loader: str
    workers: int
    step_s: float


@dataclass(frozen=True)
class Result:
    """Measurements of a case."""

    windows_per_s: float
    cpu_ms_per_window: float
    """CPU time of all processes of the case, after the warm-up."""
    peak_pss_gib: float


def cases(sizes: Sequence[int], episodes: Sequence[int], lerobot: bool) -> Iterator[Case]:
    """Yield all cases. Cases that are compared follow each other.

    LeRobot compresses its images and videos itself, so it is compared only with raw files.
    """
    for size in sizes:
        for count in episodes:
            for files in ("raw", "deflated"):
                others = LEROBOT if lerobot and files == "raw" else ()
                for loader in (*LOADERS, *others):
                    yield Case(size, files, count, loader, 1, 0.0)
        for loader in ("imf_ray", "h5py", *(LEROBOT if lerobot else ())):
            yield Case(size, "raw", min(episodes), loader, 2, 0.0)
        for loader in (*LOADERS, *(LEROBOT if lerobot else ())):
            yield Case(size, "raw", min(episodes), loader, 1, STEP_S)


def prepare(work: Path, case: Case, num_recorded: int, lerobot: str | None) -> Path:
    """Return the case's data set; record `num_recorded` episodes and link the others to them."""
    size_dir = work / str(case.size)
    raw, deflated = size_dir / "raw", size_dir / "deflated"
    if not episode_path(raw, num_recorded - 1).exists():
        options = [f"data.dataset_dir={raw}", f"task.image_size={case.size}"]
        _call(
            sys.executable,
            "-m",
            "imf_ray.collect",
            *options,
            f"collect.num_episodes={num_recorded}",
        )
    deflated.mkdir(exist_ok=True)
    for number in range(num_recorded):
        if not episode_path(deflated, number).exists():
            _deflate(episode_path(raw, number), episode_path(deflated, number))
    for folder in (raw, deflated):
        for number in range(num_recorded, case.episodes):
            if not episode_path(folder, number).exists():
                os.link(episode_path(folder, number % num_recorded), episode_path(folder, number))
    if case.loader not in LEROBOT:
        return size_dir / case.files
    kind = case.loader.removeprefix("lerobot-")
    converted = size_dir / f"{case.loader}-{case.episodes}"
    if not converted.exists():
        assert lerobot is not None
        partial = converted.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        module = ("-m", "benchmarks.lerobot_loader", "convert", str(raw), str(partial))
        _call(lerobot, *module, "--kind", kind, "--count", str(case.episodes))
        atomic_rename(partial, converted)
    return converted


def measure(case: Case, data: Path, seconds: float, lerobot: str | None) -> Result:
    """Run and measure a case.

    Raises:
        CaseError: the process ended early or exceeded the time limit.
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
            peak, start_times, times, next_memory_check = 0.0, None, {}, 0.0
            deadline = time.monotonic() + LIMIT_S
            while not (Path(folder) / END).exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise CaseError(log.read().decode()[-3000:])
                times |= cpu_times(process.pid)
                if start_times is None and (Path(folder) / BEGIN).exists():
                    start_times = dict(times)
                if (now := time.monotonic()) >= next_memory_check:
                    peak = max(peak, proportional_bytes(process.pid))
                    duration = time.monotonic() - now
                    next_memory_check = now + duration + duration / MEMORY_CPU_FRACTION
                time.sleep(POLL_S)
            times |= cpu_times(process.pid)
            spent = sum(times.values()) - sum((start_times or {}).values())
            result = json.loads((Path(folder) / END).read_text())
            process.wait(LIMIT_S)
        finally:
            kill_tree(process)
    return Result(
        windows_per_s=result["windows"] / result["seconds"],
        cpu_ms_per_window=1e3 * spent / result["windows"],
        peak_pss_gib=peak / 2**30,
    )


def loading_table(results: dict[Case, Result]) -> str:
    """Format the cases without a step: windows per second and their cost."""
    columns = ["images", "files", "episodes", "readers", "loader"]
    columns += ["windows/s", "CPU-ms/window", "peak GiB", "imf_ray / this"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for case, result in results.items():
        if case.step_s:
            continue
        imf_ray = results.get(Case(**{**asdict(case), "loader": "imf_ray"}))
        ratio = "" if imf_ray is None else f"{imf_ray.windows_per_s / result.windows_per_s:.2f}"
        cells = [f"{case.size}x{case.size}", case.files, str(case.episodes), str(case.workers)]
        cells += [case.loader, f"{result.windows_per_s:.0f}", f"{result.cpu_ms_per_window:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{result.peak_pss_gib:.2f}", ratio]) + " |")
    return "\n".join(lines)


def step_table(results: dict[Case, Result]) -> str:
    """Format the cases with a step: steps per second, also relative to loading from memory."""
    lines = ["| images | loader | steps/s | / memory | CPU-ms/window |", "|---" * 5 + "|"]
    for case, result in results.items():
        limit = results.get(Case(**{**asdict(case), "loader": "memory"}))
        if not case.step_s or limit is None:
            continue
        cells = [f"{case.size}x{case.size}", case.loader, f"{result.windows_per_s / BATCH:.2f}"]
        cells += [
            f"{result.windows_per_s / limit.windows_per_s:.3f}",
            f"{result.cpu_ms_per_window:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _deflate(source: Path, target: Path) -> None:
    """Copy an episode, with its images stored as by `collect.gzip_images=true`."""
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
    parser.add_argument(
        "--recorded",
        type=int,
        default=20,
        help="episodes to record; further ones are links to them",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    parser.add_argument("--lerobot", help="the Python of an environment with lerobot")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    log = work / "measured.jsonl"
    if arguments.lerobot:
        _call(arguments.lerobot, "-c", "import h5py, lerobot, torchcodec.decoders")
    results = read_results(log, Case, Result)
    failed: dict[Case, CaseError] = {}
    for case in cases(arguments.sizes, arguments.episodes, arguments.lerobot is not None):
        if case in results:
            continue
        try:
            data = prepare(work, case, arguments.recorded, arguments.lerobot)
            results[case] = measure(case, data, arguments.seconds, arguments.lerobot)
        except CaseError as error:  # other cases do not depend on it
            failed[case] = error
            print(case, "failed:", error, flush=True)
            continue
        append_result(log, case, results[case])
        print(case, results[case], flush=True)
    print(loading_table(results), step_table(results), f"Commit {commit()}.", sep="\n\n")
    if failed:
        raise SystemExit(f"{len(failed)} cases failed: {'; '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
