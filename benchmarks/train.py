"""Cost of a whole training run, compared with the same updates in a bare loop.

    python -m benchmarks.train data.dataset_dir=data/cpu_transfer

Compares a narrow and a ResNet-18 agent, eager and compiled. One side is `imf_ray.train` as a user
runs it (Ray, its own cluster, reads, logs). The other side is as many bare processes with the
threads of a worker each. They take the same kind of windows from memory and make the same updates
together (gloo; forward, backward, clipping, AdamW, average).

Measures samples per second after a warm-up, CPU-milliseconds per sample, the fraction of time spent
waiting for data, and the CPU time by process. Cases recorded under `--work` are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.multiprocessing

from benchmarks.data_loaders import MEMORY_BYTES, memory_batches
from benchmarks.process_stats import cpu_times, kill_tree
from benchmarks.result_log import append_result, commit, read_results
from imf_ray.config import load_config
from imf_ray.data.statistics import compute_statistics
from imf_ray.data.windows import window_spec_from_config
from imf_ray.folders import METRICS_FILE
from imf_ray.training.train_state import TrainState, to_tensors
from imf_ray.training.trainer import prepare_run

ROOT = Path(__file__).parents[1]
COMMON = (
    "train.log_freq=5",
    "train.save_freq=1000000",
    "train.rollout_val_freq_epochs=0",
    "cluster.include_dashboard=false",
    "cluster.cpus_per_worker=0.9",  # one thread, like the bare processes
)
AGENTS = {
    "narrow": ("recipe=cpu_transfer",),
    "resnet18": (
        "agent=resnet_imf_attnres",
        "agent.noise_samples_per_obs=4",
        "task.image_size=96",
        "train.batch_size=16",
        "train.num_workers=1",
        "train.val_split=0.02",
        "cluster.num_workers=2",
    ),
}
STEPS = {"narrow": (20, 100), "resnet18": (5, 25)}
"""Number of updates in the warm-up, and in total."""
POLL_S = 0.2
IDLE = "IDLE"
LIMIT_S = 3600


@dataclass(frozen=True)
class Case:
    """One training run."""

    agent: str
    compiled: bool
    path: str
    """`imf_ray` or `bare`."""
    options: str = ""
    """Options from the command line."""


@dataclass(frozen=True)
class Result:
    """Measurements of a case, after the warm-up."""

    samples_per_s: float
    cpu_ms_per_sample: float
    data_wait: float
    cpu_shares: dict[str, float] = field(default_factory=dict)
    """Fraction of the CPU time by process name."""


def options_of(case: Case, extra_options: Sequence[str]) -> list[str]:
    """Return the command-line options of a case."""
    compiled = f"train.compile={str(case.compiled).lower()}"
    return [
        *AGENTS[case.agent],
        *COMMON,
        compiled,
        f"train.max_steps={STEPS[case.agent][1]}",
        *extra_options,
    ]


def measure(case: Case, work: Path, extra_options: Sequence[str]) -> Result:
    """Run a case in separate processes and follow its log of metrics."""
    run_dir = (
        work / f"{case.agent}-{'compiled' if case.compiled else 'eager'}-{case.path}-{os.getpid()}"
    )
    options = [*options_of(case, extra_options), f"storage_path={work}", f"run_name={run_dir.name}"]
    module = ["imf_ray.train"] if case.path == "imf_ray" else ["benchmarks.train", "--bare"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", *module, *options], cwd=ROOT, env=environment)
    warm, last = STEPS[case.agent]
    times: dict[int, float] = {}
    names: dict[int, str] = {}
    start_times: dict[int, float] | None = None
    deadline = time.monotonic() + LIMIT_S
    try:
        while True:
            has_ended = process.poll() is not None
            now = cpu_times(process.pid)
            times |= now
            for pid in now:  # a Ray worker without a task is named idle
                name = _name(pid)
                if pid not in names or IDLE not in name:
                    names[pid] = name
            lines = list(_losses(run_dir / METRICS_FILE))
            if start_times is None and lines and lines[-1]["step"] >= warm:
                start_times = dict(times)
            if lines and lines[-1]["step"] >= last:
                break
            if has_ended or time.monotonic() > deadline:
                raise SystemExit(f"{case} failed.")
            time.sleep(POLL_S)
    finally:
        kill_tree(process)
    measured = [line for line in lines if line["step"] >= warm]
    first = measured[0]
    samples = load_config(options).train.batch_size * (last - first["step"])
    spent = {pid: seconds - (start_times or {}).get(pid, 0.0) for pid, seconds in times.items()}
    shares: Counter[str] = Counter()
    for pid, seconds in spent.items():
        shares[names[pid]] += seconds / sum(spent.values())
    return Result(
        samples_per_s=samples / (measured[-1]["time"] - first["time"]),
        cpu_ms_per_sample=1e3 * sum(spent.values()) / samples,
        data_wait=sum(line["data_wait_frac"] for line in measured[1:]) / max(1, len(measured) - 1),
        cpu_shares={name: round(share, 3) for name, share in shares.most_common(5)},
    )


def run_bare(options: Sequence[str]) -> None:
    """Make the same updates in processes without Ray, with windows from memory."""
    config = load_config(options)
    prepare_run(config)  # builds the index once, for all ranks
    world_size = config.cluster.num_workers
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, list(options), f"file://{folder}/rendezvous")
        torch.multiprocessing.spawn(_bare_rank, arguments, nprocs=world_size)


def _bare_rank(rank: int, world_size: int, options: Sequence[str], rendezvous: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=world_size
    )
    config = load_config(options)
    run = prepare_run(config)
    spec = window_spec_from_config(config)
    statistics = compute_statistics(run.train.episodes, spec.fields)
    trainer = TrainState(config, statistics, torch.device(config.train.device))
    trainer.module = torch.nn.parallel.DistributedDataParallel(trainer.agent)
    log = Path(config.storage_path) / str(config.run_name) / METRICS_FILE
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = [Path(episode.path) for episode in run.train.episodes]
    waited, since = 0.0, time.perf_counter()
    size = config.train.batch_size // world_size
    batches = memory_batches(paths, spec, size, seed=rank, max_bytes=MEMORY_BYTES / world_size)
    while trainer.step < config.train.max_steps:
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        loss, _ = trainer.update(to_tensors(batch, config, 0, trainer.device, world_size))
        if rank == 0 and trainer.step % config.train.log_freq == 0:
            now = time.perf_counter()
            entry = {"step": trainer.step, "time": time.time(), "loss": float(loss)}
            entry["data_wait_frac"] = waited / (now - since)
            waited, since = 0.0, now
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def table(results: dict[Case, Result]) -> str:
    """Format the results as Markdown."""
    columns = ["agent", "mode", "path", "samples/s", "/ bare", "CPU-ms/sample", "data wait"]
    columns += ["CPU time by process"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for case, result in results.items():
        bare = results.get(replace(case, path="bare"))
        ratio = "" if bare is None else f"{result.samples_per_s / bare.samples_per_s:.2f}"
        shares = ", ".join(f"{name} {share:.2f}" for name, share in result.cpu_shares.items())
        cells = [case.agent, "compiled" if case.compiled else "eager", case.path]
        cells += [f"{result.samples_per_s:.1f}", ratio, f"{result.cpu_ms_per_sample:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{result.data_wait:.3f}", shares]) + " |")
    return "\n".join(lines)


def _losses(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics log that describe updates."""
    if not log.exists():
        return
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and "loss" in (entry := json.loads(line)):  # skips a partial line
            yield entry


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return "ended"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_train"))
    parser.add_argument("--agent", choices=AGENTS, help="only this one")
    parser.add_argument("--bare", action="store_true", help="run the bare loop of a case")
    parser.add_argument("options", nargs="*", help="key=value options of every run")
    arguments = parser.parse_intermixed_args()
    if arguments.bare:
        run_bare(arguments.options)
        return
    work = arguments.work.absolute()
    log = work / "measured.jsonl"
    results = read_results(log, Case, Result)
    for agent in [arguments.agent] if arguments.agent else AGENTS:
        kinds = [(compiled, path) for compiled in (False, True) for path in ("bare", "imf_ray")]
        for case in (Case(agent, *kind, " ".join(arguments.options)) for kind in kinds):
            if case not in results:
                results[case] = measure(case, work, arguments.options)
                append_result(log, case, results[case])
    print(table(results), f"Commit {commit()}.", sep="\n\n")


if __name__ == "__main__":
    main()
