"""Success of one network call, compared with a diffusion loop on the same network.

    python -m benchmarks.one_step --recipe cpu_transfer --output runs/one_step

Trains the same trunk, head, data, updates and seed under three objectives (improved MeanFlow, flow
matching, DDPM) with `imf_ray.train`. Evaluates each at several numbers of network calls with
`imf_ray.evaluate` on the same episodes. Rewrites the page `docs/results/one_step/RECIPE.md` and the
raw records after each row. Skips finished rows, so that the same command resumes.

Further `key=value` options are passed to every training. `--trained iMF=policies/sim_transfer`
evaluates that checkpoint instead of training one for the objective.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.result_log import commit
from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import load_agent, load_policy_config
from imf_ray.evaluation.comparison import Comparison, compare
from imf_ray.files import write_atomically
from imf_ray.folders import EPISODES_FILE
from imf_ray.rollout.record_store import read_records
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.schema import Config
from imf_ray.training.run_dir import RunDir

OBJECTIVES = {
    "iMF": (),
    "DDIM": (
        "agent.objective=ddpm",
        "agent.ddpm.prediction_type=sample",
        "agent.loss_type=mse",
        "agent.inference_steps=10",
    ),
    "flow": ("agent.objective=flow", "agent.time_sampler=uniform", "agent.inference_steps=10"),
}
"""Options of each training that differ from the recipe. Recipes are written for iMF."""
FIRST_SEED = 800_000
"""First evaluation seed. These seeds have no other use."""
TIMED_CALLS, WARM_UP_CALLS = 40, 3
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "one_step"


@dataclass(frozen=True)
class Row:
    """A trained policy, executed with `steps` network calls per action chunk."""

    objective: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.objective}-{self.steps}"


ROWS = (
    Row("iMF", 1),
    Row("iMF", 2),
    Row("iMF", 5),
    Row("flow", 1),
    Row("flow", 10),
    Row("DDIM", 1),
    Row("DDIM", 10),
    Row("DDIM", 100),
)
REFERENCE = Row("DDIM", 10)
ORDER = sorted(
    ROWS,
    key=lambda row: (
        row != REFERENCE,
        row.steps > REFERENCE.steps,
        list(OBJECTIVES).index(row.objective),
        row.steps,
    ),
)
"""Rows in the order of training and evaluation: the reference, the main comparison, the longest.
An unfinished page thus already has the main comparison."""
MAX_LOSS, MIN_REFERENCE = 0.05, 0.7
"""Target: maximum loss of success rate by one step, and minimum success rate of the reference."""
MAX_HEAD_RATIO = 0.12


def command(module: str, *options: str) -> None:
    """Run a command as a user does and show its output.

    Raises:
        SystemExit: the command failed.
    """
    arguments = [sys.executable, "-m", f"imf_ray.{module}", *options]
    print("$", " ".join(["python", *arguments[1:]]), flush=True)
    code = subprocess.run(arguments).returncode
    if code:
        raise SystemExit(code)


def train(objective: str, output: Path, recipe: str, options: Sequence[str]) -> Path:
    """Return the last checkpoint of an objective's run. Train the run if it does not exist."""
    command(
        "train",
        f"recipe={recipe}",
        *OBJECTIVES[objective],
        f"storage_path={output}",
        f"run_name={objective}",
        *options,
    )
    checkpoint = RunDir(output / objective).newest_checkpoint()
    assert checkpoint is not None
    return checkpoint.path


def read_trained(given: Sequence[str]) -> dict[str, Path]:
    """Parse texts `OBJECTIVE=CHECKPOINT`.

    Raises:
        ValueError: a text has another form, or names an unknown objective.
    """
    checkpoints = {}
    for text in given:
        objective, equals, checkpoint = text.partition("=")
        if not equals or objective not in OBJECTIVES:
            raise ValueError(
                f"--trained {text}: expected OBJECTIVE=CHECKPOINT with an objective of "
                f"{', '.join(OBJECTIVES)}"
            )
        checkpoints[objective] = Path(checkpoint)
    return checkpoints


def evaluate(row: Row, checkpoint: Path, output: Path, episodes: int) -> list[EpisodeRecord]:
    """Return the records of a row. Run the episodes whose records do not exist."""
    folder = output / "records" / row.name
    command(
        "evaluate",
        f"checkpoint={checkpoint}",
        f"evaluate.inference_steps={row.steps}",
        f"evaluate.num_episodes={episodes}",
        f"evaluate.seed={FIRST_SEED}",
        f"evaluate.output_dir={folder}",
        "cluster.include_dashboard=false",
    )
    records = {record.seed: record for record in read_records(folder / EPISODES_FILE)}
    return [records[seed] for seed in range(FIRST_SEED, FIRST_SEED + episodes)]


@dataclass(frozen=True)
class CallTimes:
    """Milliseconds that a policy needs for one action chunk."""

    head: float
    """Median of the network calls without the encoders."""
    p50: float
    """Median with the encoders."""
    p95: float


def time_calls(checkpoints: Mapping[str, Path]) -> dict[str, CallTimes]:
    """Measure the time per chunk of each row whose objective has a checkpoint.

    One sample, one thread. The rows alternate, so that changes of the machine's speed affect all.
    """
    torch.set_num_threads(1)
    rows = [row for row in ROWS if row.objective in checkpoints]
    agents = {objective: load_agent(path)[0] for objective, path in checkpoints.items()}
    observations = {
        objective: _blank_observation(agents[objective], load_policy_config(path))
        for objective, path in checkpoints.items()
    }
    heads: dict[str, list[float]] = {row.name: [] for row in rows}
    wholes: dict[str, list[float]] = {row.name: [] for row in rows}
    generator = torch.Generator().manual_seed(0)
    for number in range(WARM_UP_CALLS + TIMED_CALLS):
        for row in rows:
            agent = agents[row.objective]
            agent.inference_steps = row.steps
            shape = (1, agent.pred_horizon, agent.action_dim)
            noise = torch.randn(shape, generator=generator)
            start = time.perf_counter()
            with torch.no_grad():
                cond = agent._build_cond(observations[row.objective])
                encoded = time.perf_counter()
                agent._sample_actions(noise, cond)
            end = time.perf_counter()
            if number >= WARM_UP_CALLS:
                heads[row.name].append(1e3 * (end - encoded))
                wholes[row.name].append(1e3 * (end - start))
    return {
        name: CallTimes(float(np.median(heads[name])), *np.percentile(wholes[name], (50, 95)))
        for name in heads
    }


def _blank_observation(agent: VLAAgent, config: Config) -> dict[str, Any]:
    side = config.task.image_size
    shape = (1, agent.obs_horizon, side, side, 3)
    images = {camera: torch.zeros(shape, dtype=torch.uint8) for camera in agent.camera_names}
    state = torch.zeros(1, agent.obs_horizon, agent.state_dim)
    return {"images": images, "qpos": state}


def table(
    records_by_row: Mapping[str, Sequence[EpisodeRecord]], times: Mapping[str, CallTimes]
) -> str:
    """Format the results as Markdown, one line per row."""
    stages = range(1, next(iter(records_by_row.values()))[0].num_stages + 1)
    columns = [
        "policy-calls",
        "success [95 % Wilson]",
        f"minus {REFERENCE.name} [95 %]",
        "mean return",
        "reached " + " / ".join(f">={stage}" for stage in stages),
        "head ms",
        f"/ {REFERENCE.name}",
        "chunk ms p50 / p95",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, records in records_by_row.items():
        summary = summarize(records)
        difference = "reference"
        if name != REFERENCE.name:
            comparison = versus_reference(name, records_by_row)
            difference = (
                f"{comparison.difference:+.3f} [{comparison.low:+.3f}, {comparison.high:+.3f}]"
            )
        cells = [
            name,
            f"{summary.success_rate:.3f} "
            f"[{summary.success_ci_low:.3f}, {summary.success_ci_high:.3f}]",
            difference,
            f"{summary.return_mean:.1f}",
            " / ".join(f"{summary.stage_shares[stage]:.2f}" for stage in stages),
            f"{times[name].head:.2f}",
            f"{times[name].head / times[REFERENCE.name].head:.3f}",
            f"{times[name].p50:.1f} / {times[name].p95:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def versus_reference(
    name: str, records_by_row: Mapping[str, Sequence[EpisodeRecord]]
) -> Comparison:
    """Compare a row with the reference on the same episodes."""
    return compare({name: records_by_row[name], REFERENCE.name: records_by_row[REFERENCE.name]})[0]


def describe_target(records_by_row: Mapping[str, Sequence[EpisodeRecord]]) -> str:
    """State in words if the target of the comparison is met."""
    if "iMF-1" not in records_by_row:
        return f"* One-step iMF against {REFERENCE.name}: not evaluated yet."
    one = versus_reference("iMF-1", records_by_row)
    reference = summarize(records_by_row[REFERENCE.name])
    met = one.low >= -MAX_LOSS and reference.success_rate >= MIN_REFERENCE
    return f"""* One-step iMF minus {REFERENCE.name}: {one.difference:+.3f}, 95 % confidence \
interval [{one.low:+.3f}, {one.high:+.3f}] (Bonett and Price, paired on {one.episodes} episodes), \
exact McNemar p = {one.p_value:.3g}. The target, a lower bound of at least {-MAX_LOSS} with \
{REFERENCE.name} at {MIN_REFERENCE} or more, is {"met" if met else "missed"} \
({REFERENCE.name}: {reference.success_rate:.3f})."""


def describe_head_time(times: Mapping[str, CallTimes]) -> str:
    """State in words the head time of one-step iMF relative to the reference."""
    if "iMF-1" not in times:
        return f"* Head time of one-step iMF / {REFERENCE.name}: not measured yet."
    ratio = times["iMF-1"].head / times[REFERENCE.name].head
    return (
        f"* Head time of one-step iMF / {REFERENCE.name}: {ratio:.3f} "
        f"(target: at most {MAX_HEAD_RATIO})."
    )


def write_results(
    records_by_row: Mapping[str, Sequence[EpisodeRecord]],
    times: Mapping[str, CallTimes],
    recipe: str,
    description: str,
) -> Path:
    """Write the page of the evaluated rows and the raw records (JSON lines, gzip)."""
    records_by_row = {
        row.name: records_by_row[row.name] for row in ROWS if row.name in records_by_row
    }
    records_dir = RESULTS / recipe
    records_dir.mkdir(parents=True, exist_ok=True)
    for name, records in records_by_row.items():
        lines = "".join(json.dumps(vars(record)) + "\n" for record in records)
        # Without a modification time, equal records give equal bytes.
        write_atomically(records_dir / f"{name}.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
    missing = [row.name for row in ROWS if row.name not in records_by_row]
    page = f"""# One step against a diffusion loop: {recipe}

{description}

{table(records_by_row, times)}

{describe_target(records_by_row)}
{describe_head_time(times)}
* Each objective was trained once, with one seed; the common hyperparameters were chosen for iMF.
* Rows still to be evaluated: {", ".join(missing) or "none"}.
* "head ms": the network calls of one chunk without the encoders, the median; "chunk ms": all of \
it, with the encoders. One sample, one thread, {TIMED_CALLS} times, rows alternating.
* Raw records: `{recipe}/*.jsonl.gz`, one line per episode.
"""
    path = RESULTS / f"{recipe}.md"
    write_atomically(path, page)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="cpu_transfer")
    parser.add_argument("--output", type=Path, default=Path("runs/one_step"))
    parser.add_argument("--episodes", type=int, default=300, help="paired episodes of each row")
    parser.add_argument(
        "--trained",
        action="append",
        default=[],
        metavar="OBJECTIVE=CHECKPOINT",
        help="evaluate this checkpoint instead of training one for the objective",
    )
    parser.add_argument("options", nargs="*", metavar="key=value", help="for every training")
    arguments = parser.parse_args()
    try:
        checkpoints = read_trained(arguments.trained)
    except ValueError as error:
        parser.error(str(error))
    output = arguments.output.absolute()
    shown = [option for option in arguments.options if not option.startswith("data.dataset_dir=")]
    trained = [f"--trained {text}" for text in arguments.trained]
    options = " ".join([f"--recipe {arguments.recipe}", *trained, *shown])
    description = (
        f"`python -m benchmarks.one_step {options}`: iMF, flow matching and DDPM with the same "
        "trunk, head, demonstrations, updates and seed, evaluated on the same "
        f"{arguments.episodes} episodes (seeds from {FIRST_SEED}). "
        f"Page written by commit {commit()}; torch {torch.__version__}."
    )
    if trained:
        description += " Checkpoints named by `--trained` were trained before, with other options."
    times: dict[str, CallTimes] = {}
    records_by_row: dict[str, list[EpisodeRecord]] = {}
    for row in ORDER:
        if row.objective not in checkpoints:
            checkpoints[row.objective] = train(
                row.objective, output, arguments.recipe, arguments.options
            )
        if row.name not in times:
            times = time_calls(checkpoints)
        records_by_row[row.name] = evaluate(
            row, checkpoints[row.objective], output, arguments.episodes
        )
        print(write_results(records_by_row, times, arguments.recipe, description))


if __name__ == "__main__":
    main()
