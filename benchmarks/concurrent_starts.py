"""Pairs of starts of one command into one folder, with a random time between them.

    python -m benchmarks.concurrent_starts --pairs 20 --work runs/pairs

For `train`, `collect` and `evaluate`, each pair starts the command, waits for up to 20 s, and
starts it again with the same folder; every other second `collect` has another seed. If the first
start is still at work, the second one must be refused, and name the host and the process of the
first. If it has ended, the second one finds everything done, or, with another seed, refuses the
data set. In the end the folder must have exactly the content that a single start gives.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from benchmarks.result_log import commit
from imf_ray.checkpoint_dir import read_checkpoint
from imf_ray.claims import CLAIM_FILE
from imf_ray.cli import EXIT_USER_ERROR
from imf_ray.data.episode_files import list_episodes
from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE
from imf_ray.files import read_json_lines, write_atomically
from imf_ray.folders import EPISODES_FILE, METRICS_FILE
from imf_ray.rollout.record_store import SUMMARY_FILE, read_records
from imf_ray.training.run_dir import RunDir
from testing_support.configs import TINY_AGENT

MAX_OFFSET_S = 20.0
"""Largest time between the two starts of a pair."""
TIMEOUT_S = 900.0
"""Seconds after which a process counts as hung."""
STEPS, EPISODES, ROLLOUTS = 40, 2, 4
"""Number of updates of a run, demonstrations of a data set and episodes of an evaluation."""
LAST_CHECKPOINT = f"checkpoint_{STEPS:08d}"
IMAGES = ("data.camera_names=[top]", "task.image_size=32", "cluster.include_dashboard=false")
FIRST_SEED, OTHER_SEED = 0, 1000
CLAIMED = " is in use: "
"""Part of the message of a refused start."""


@dataclass(frozen=True)
class Start:
    """One process of a pair."""

    pid: int
    code: int
    started_at: float
    ended_at: float
    error: str
    """Its standard error."""

    def refusal_of(self, other: Start) -> bool:
        """Return True if this process was refused because of the other one."""
        names = (CLAIMED, f"process {other.pid} ", socket.gethostname())
        return self.code == EXIT_USER_ERROR and all(name in self.error for name in names)


@dataclass
class Result:
    """The result of one pair."""

    refusal_s: float | None
    """Seconds from the start of the refused process to its end; None if none was refused."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """A command, and the content of its folder after a single start."""

    name: str
    arguments: Callable[[Path], list[str]]
    content: Callable[[Path], Any]
    second: Sequence[str] = ()
    """Options of every other second start."""
    refused_later: str = ""
    """Part of the message of such a second start that finds the finished folder."""


def train_arguments(data: Path, folder: Path) -> list[str]:
    """Return the command that trains a tiny agent in `folder`."""
    options = [f"train.max_steps={STEPS}", "train.batch_size=8", "train.warmup_steps=1"]
    options += ["train.log_freq=1", "train.log_sample_ids=true", f"train.save_freq={STEPS // 2}"]
    options += ["train.val_split=0.0", "train.num_workers=1", "agent.vision_backbone.crop_size=24"]
    agent = ["agent=resnet_imf_attnres", *TINY_AGENT]
    paths = [f"data.dataset_dir={data}", f"storage_path={folder.parent}", f"run_name={folder.name}"]
    return ["imf_ray.train", *agent, *options, *IMAGES, *paths]


def train_content(folder: Path) -> Any:
    """Return the logged updates and their samples, and the digests of the last checkpoint."""
    metrics = _complete_lines(folder / METRICS_FILE)
    samples = _complete_lines(folder / "samples_rank_0.jsonl")
    checkpoint = read_checkpoint(folder / LAST_CHECKPOINT)  # verifies the digests
    weights = json.loads((checkpoint.path / "manifest.json").read_text())["files"]
    return {
        "updates": [line["step"] for line in metrics if "loss" in line],
        "losses": [line["loss"] for line in metrics if "loss" in line],
        "samples": [[line["step"], line["samples"]] for line in samples],
        "weights": {name: weights[name] for name in weights if name.endswith(".safetensors")},
        "checkpoints": [saved.step for saved in RunDir(folder).list_checkpoints()],
    }


def collect_arguments(folder: Path) -> list[str]:
    """Return the command that collects a small data set into `folder`."""
    options = [f"collect.num_episodes={EPISODES}", f"collect.seed={FIRST_SEED}"]
    return ["imf_ray.collect", *IMAGES, *options, f"data.dataset_dir={folder}"]


def collect_content(folder: Path) -> Any:
    """Return the name, seed and content hash of each episode."""
    episodes = []
    for path in list_episodes(folder):
        with h5py.File(path) as file:
            episodes.append((path.name, int(file.attrs["seed"]), str(file.attrs[HASH_ATTRIBUTE])))
    return episodes


def evaluate_arguments(folder: Path) -> list[str]:
    """Return the command that evaluates the expert and records the episodes in `folder`."""
    options = [f"evaluate.num_episodes={ROLLOUTS}", "evaluate.video=none"]
    return [
        "imf_ray.evaluate",
        "checkpoint=expert",
        *IMAGES,
        *options,
        f"evaluate.output_dir={folder}",
    ]


def evaluate_content(folder: Path) -> Any:
    """Return the records without their timing, and the seeds of the summary."""
    _complete_lines(folder / EPISODES_FILE)
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    records = read_records(folder / EPISODES_FILE)
    return [[record.without_timing() for record in records], summary["seeds"]]


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(path, dict)
    assert lines.num_invalid == 0 and lines.end == path.stat().st_size, f"{path} has damaged lines"
    return lines.rows


def start(arguments: Sequence[str], log: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Start a command as a user does, with a cluster of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with log.open("wb") as error:
        command = [sys.executable, "-m", *arguments]
        output = subprocess.DEVNULL
        return subprocess.Popen(command, stdout=output, stderr=error, env=environment), time.time()


def finish(process: subprocess.Popen[bytes], started_at: float, log: Path) -> Start:
    """Wait for the end of a process."""
    try:
        code = process.wait(TIMEOUT_S)
    finally:
        process.kill()
    return Start(process.pid, code, started_at, time.time(), log.read_text(errors="replace"))


def run_pair(kind: Kind, work: Path, expected: Any, number: int, offset_s: float) -> Result:
    """Start a command twice, and check what became of both and of their folder."""
    folder = work / kind.name / f"pair_{number}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    logs = [folder.with_name(f"{folder.name}_{name}.log") for name in ("first", "second")]
    options = kind.second if number % 2 else ()
    first = start(kind.arguments(folder), logs[0])
    time.sleep(offset_s)
    second = start([*kind.arguments(folder), *options], logs[1])
    with ThreadPoolExecutor(2) as executor:
        ends = [executor.submit(finish, *first, logs[0]), executor.submit(finish, *second, logs[1])]
        a, b = (end.result() for end in ends)
    result = check_starts(kind, a, b, has_other_options=bool(options))
    if not (a.refusal_of(b) and options):  # the second start won: it records other seeds
        try:
            content = kind.content(folder)
        except Exception as error:  # any damage is a finding
            content = f"{type(error).__name__}: {error}"
        if content != expected:
            result.problems.append(f"other content: {str(content)[:200]}")
    if left := [path.name for path in folder.rglob("*") if path.name in (CLAIM_FILE, "pending")]:
        result.problems.append(f"left behind: {left}")
    print(f"{kind.name} {number}: {offset_s:.1f} s, codes {a.code} {b.code}, {result}", flush=True)
    return result


def check_starts(kind: Kind, a: Start, b: Start, has_other_options: bool) -> Result:
    """Check the exit codes and messages of a pair: one start works, the other is refused."""
    for refused, worked in ((b, a), (a, b)):
        if worked.code == 0 and refused.refusal_of(worked):
            problems = (
                [] if refused.ended_at < worked.ended_at else ["refused after the other ended"]
            )
            return Result(refused.ended_at - refused.started_at, problems)
    if a.code == 0 and a.ended_at < b.ended_at:  # the second start found the finished folder
        if has_other_options and kind.refused_later:
            if b.code == EXIT_USER_ERROR and kind.refused_later in b.error:
                return Result(None)
        elif b.code == 0:
            return Result(None)
    return Result(None, [f"codes {a.code} and {b.code}: {a.error[-500:]} {b.error[-500:]}"])


def make_kinds(data: Path) -> list[Kind]:
    """Return the commands to start in pairs."""
    other_seed = [f"collect.seed={OTHER_SEED}"]
    return [
        Kind("train", partial(train_arguments, data), train_content),
        Kind("collect", collect_arguments, collect_content, other_seed, "collect.seed=1000"),
        Kind("evaluate", evaluate_arguments, evaluate_content),
    ]


def run(pairs: int, parallel: int, seed: int, work: Path) -> dict[str, list[Result]]:
    """Run all pairs of all kinds, some at a time."""
    rng = random.Random(seed)
    results = {}
    for kind in sorted(make_kinds(work / "alone" / "collect"), key=lambda kind: kind.name):
        alone = work / "alone" / kind.name
        alone.parent.mkdir(parents=True, exist_ok=True)
        log = alone.with_name(f"{kind.name}.log")
        single = finish(*start(kind.arguments(alone), log), log)
        if single.code:
            raise SystemExit(f"{kind.name} failed: {single.error}")
        expected = kind.content(alone)
        offsets = [rng.uniform(0.0, MAX_OFFSET_S) for _ in range(pairs)]
        with ThreadPoolExecutor(parallel) as executor:
            pair = partial(run_pair, kind, work, expected)
            results[kind.name] = list(executor.map(pair, range(pairs), offsets))
    return results


def make_table(results: dict[str, list[Result]]) -> str:
    """Return a table with one row per command."""
    rows = []
    for name, pairs in results.items():
        seconds = [result.refusal_s for result in pairs if result.refusal_s is not None]
        times = f"{statistics.median(seconds):.1f}, {max(seconds):.1f}" if seconds else ""
        problems = sum(bool(result.problems) for result in pairs)
        rows.append(f"| {name} | {len(pairs)} | {len(seconds)} | {times} | {problems} |")
    columns = (
        "pairs | one start refused | seconds until then: median, largest | pairs with a problem"
    )
    return "\n".join([f"| command | {columns} |", "|---" * 5 + "|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20, help="number of pairs of each command")
    parser.add_argument("--parallel", type=int, default=3, help="number of pairs at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="default: a new temporary folder")
    parser.add_argument("--page", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="pairs"))).absolute()
    if work.exists() and any(work.iterdir()):
        parser.error(f"--work {work} is not empty")
    begin = time.monotonic()
    results = run(arguments.pairs, arguments.parallel, arguments.seed, work)
    command = f"python -m benchmarks.concurrent_starts --pairs {arguments.pairs}"
    command += f" --parallel {arguments.parallel} --seed {arguments.seed}"
    wall_s = time.monotonic() - begin
    page = f"`{command}`: {wall_s:.0f} s. Commit {commit()}.\n\n{make_table(results)}"
    print(page)
    if arguments.page is not None:
        write_atomically(arguments.page, page)
    problems = [p for pairs in results.values() for result in pairs for p in result.problems]
    if problems:
        raise SystemExit("\n".join(["Failed:", *problems, f"Logs are in {work}"]))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
