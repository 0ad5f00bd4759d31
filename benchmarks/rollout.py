"""What a judgement costs: ours, a lock-step vector environment, and a serial loop.

    python -m benchmarks.rollout --checkpoint RUN/checkpoint_00000300 --episodes 8 --rounds 3

All forms play the same policy on the same episodes, in full length, with the same render flags and
one thread a process. Three questions:

1. On one core, what do physics, rendering and inference cost in each form, in CPU seconds? Ours is
   an `EpisodeRunner` with `--worlds` worlds. The lock-step form is gymnasium's `AsyncVectorEnv` of
   as many environments, which renders every frame, as LeRobot's evaluation does; the serial form
   renders every frame of one environment, as RoboIMI's and ACT's do.
2. On two cores, what do two Ray actors reach beside two plain processes?
3. What would 8 and 64 actors reach? The queue is simulated with measured episode times.

Start-up (imports, loading, making environments) is in none of the figures.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from imf_ray.env_vars import prepare_environment

prepare_environment(own_cluster=True)  # before anything imports MuJoCo or Ray

import gymnasium
import numpy as np
import ray
import torch

from imf_ray.agents.pretrained import load_agent, load_policy_config
from imf_ray.allocation import RolloutResources
from imf_ray.rollout.actor_pool import RolloutActorPool, RolloutSpec
from imf_ray.rollout.episode_runner import EpisodeRunner
from imf_ray.rollout.policies import AgentPolicy, make_policy
from imf_ray.rollout.policy_spec import PolicySpec
from imf_ray.rollout.rollout_config import agent_rollout_config
from imf_ray.sim.tasks.transfer import SimTransferEnv

ENV_ID = "benchmarks.rollout:benchmarks/MeteredTransfer-v0"
FIRST_SEED = 600_000
PHYSICS, RENDERING, INFERENCE = "physics", "rendering", "inference"
SIMULATED_ACTORS, SIMULATED_EPISODES = (2, 8, 64), 512


class Meter:
    """CPU seconds of this process, all its threads, by activity."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def on(self, activity: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[activity] += time.process_time() - start


METER = Meter()


class MeteredTransferEnv(SimTransferEnv):
    """The transfer task, with its CPU time noted; the last step's total is in `info`."""

    def step(self, action: Any) -> Any:
        rendering = METER.seconds[RENDERING]
        start = time.process_time()
        result = super().step(action)
        spent = time.process_time() - start
        METER.seconds[PHYSICS] += spent - (METER.seconds[RENDERING] - rendering)
        result[-1].update({name: METER.seconds[name] for name in (PHYSICS, RENDERING)})
        return result

    def render_cameras(self) -> Any:
        with METER.on(RENDERING):
            return super().render_cameras()


if "benchmarks/MeteredTransfer-v0" not in gymnasium.registry:
    gymnasium.register(id="benchmarks/MeteredTransfer-v0", entry_point=MeteredTransferEnv)


class Metered(AgentPolicy):
    """An agent whose calls are metered."""

    def predict_chunks(self, episodes: Any, timers: Any) -> None:
        with METER.on(INFERENCE):
            super().predict_chunks(episodes, timers)


def make_job(checkpoint: Path, worlds: int) -> RolloutSpec:
    """The checkpoint's own task, metered, with a call of the policy for all worlds of an actor."""
    config = load_policy_config(checkpoint)
    settings = agent_rollout_config(config, noise_seed=0)
    task = replace(config.task, env_id=ENV_ID)
    return RolloutSpec(
        PolicySpec.parse(str(checkpoint)),
        replace(settings, task=task, inference_batch_size=worlds),
        worlds,
    )


def make_runner(job: RolloutSpec) -> EpisodeRunner:
    agent, _ = load_agent(job.policy.local_path)
    return EpisodeRunner(Metered(agent, "metered", job.config), job.config, job.envs_per_actor)


def play(runner: EpisodeRunner, worlds: int, seeds: Sequence[int]) -> list[Any]:
    """All episodes, a free world taking the next seed at once."""
    waiting, played = list(seeds), []
    for seed in waiting[:worlds]:
        runner.start(seed)
    waiting = waiting[worlds:]
    while len(played) < len(seeds):
        for episode in runner.run_until_any_done():
            played.append(episode.record)
            if waiting:
                runner.start(waiting.pop(0))
    return played


# 1. One core ------------------------------------------------------------------------------------


def ours(job: RolloutSpec, episodes: int) -> dict[str, float]:
    """Several worlds in this process, rendered where the policy looks."""
    runner = make_runner(job)
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    return _timed(lambda: sum(r.steps for r in play(runner, job.envs_per_actor, seeds)))


def serial(job: RolloutSpec, episodes: int) -> dict[str, float]:
    """One environment after the other, every frame rendered, a call for each chunk."""
    agent, _ = load_agent(job.policy.local_path)
    env = make_rendering_env(job)

    def run() -> int:
        steps = 0
        for seed in range(FIRST_SEED, FIRST_SEED + episodes):
            observation, _ = env.reset(seed=seed)
            agent.reset()
            over = False
            while not over:
                action = _select(agent, batch_of_one(observation))[0]
                observation, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated
                steps += 1
        return steps

    return _timed(run)


def lock_step(job: RolloutSpec, episodes: int) -> dict[str, float]:
    """Environments in processes of their own that all wait for each other at every step."""
    agent, _ = load_agent(job.policy.local_path)
    env = gymnasium.vector.AsyncVectorEnv(
        [lambda: make_rendering_env(job)] * job.envs_per_actor, context="spawn"
    )
    spent_in_envs: dict[str, float] = {}

    def run() -> int:
        steps, last = 0, {}
        for first in range(FIRST_SEED, FIRST_SEED + episodes, job.envs_per_actor):
            observation, _ = env.reset(seed=list(range(first, first + job.envs_per_actor)))
            agent.reset()
            over = np.zeros(job.envs_per_actor, bool)
            while not over.all():
                actions = _select(agent, observation)
                observation, _, terminated, truncated, last = env.step(actions)
                over |= terminated | truncated
                steps += job.envs_per_actor
        spent_in_envs.update({name: float(last[name].sum()) for name in (PHYSICS, RENDERING)})
        return steps

    result = _timed(run)
    env.close()
    return result | spent_in_envs


def make_rendering_env(job: RolloutSpec) -> Any:
    torch.set_num_threads(1)
    settings = job.config
    kwargs = settings.task.env_kwargs(settings.camera_names)
    for key in ("adapter", "control_hz"):
        del kwargs[key]
    return gymnasium.make(ENV_ID, disable_env_checker=True, **kwargs)


def batch_of_one(observation: dict[str, Any]) -> dict[str, Any]:
    images = {name: frame[None] for name, frame in observation["images"].items()}
    return {"images": images, "qpos": observation["qpos"][None]}


def _select(agent: Any, observation: dict[str, Any]) -> np.ndarray:
    with METER.on(INFERENCE):
        return agent.select_action(observation).numpy()


def _timed(run: Callable[[], int]) -> dict[str, float]:
    METER.seconds.clear()
    start, cpu = time.perf_counter(), time.process_time()
    steps = run()
    return {
        "steps": steps,
        "wall": time.perf_counter() - start,
        "this process": time.process_time() - cpu,
        **{name: METER.seconds[name] for name in (PHYSICS, RENDERING, INFERENCE)},
    }


def in_process(form: Callable[..., Any], cores: set[int], *arguments: Any) -> Any:
    """The result of a form in a process of its own, with its children on `cores`."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue, form, cores, arguments))
    process.start()
    result = queue.get()
    process.join()
    return result


def _child(queue: Any, form: Callable[..., Any], cores: set[int], arguments: Any) -> None:
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    queue.put(form(*arguments))


# 2. Two cores -----------------------------------------------------------------------------------


def on_actors(job: RolloutSpec, actors: int, episodes: int) -> tuple[float, list[Any]]:
    """Seconds of all episodes on so many Ray actors, once they are ready, and the records."""
    pool = RolloutActorPool(
        job, range(FIRST_SEED, FIRST_SEED + episodes), RolloutResources(actors, 1.0), {}
    )
    pool.wait_until_ready()
    start = time.perf_counter()
    records = [result.record for result in pool.run()]
    wall = time.perf_counter() - start
    pool.stop()
    return wall, records


def on_processes(job: RolloutSpec, processes: int, episodes: int) -> float:
    """Seconds of all episodes in so many plain processes, an equal share of them each."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes + 1), context.Queue()
    share = episodes // processes
    workers = [
        context.Process(target=_plain, args=(job, range(first, first + share), barrier, queue))
        for first in range(FIRST_SEED, FIRST_SEED + episodes, share)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    for _ in workers:
        queue.get()
    wall = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return wall


def _plain(job: RolloutSpec, seeds: range, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    runner = EpisodeRunner(make_policy(job.policy, job.config), job.config, job.envs_per_actor)
    barrier.wait()
    play(runner, job.envs_per_actor, seeds)
    queue.put(None)


# 3. More actors than there are ------------------------------------------------------------------


def queue_efficiency(times: Sequence[float], places: int) -> float:
    """Busy share of `places` worlds that take the next episode as soon as they are free."""
    free = [0.0] * places
    for seconds in times:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return sum(times) / (places * max(free))


def lock_step_efficiency(times: Sequence[float], places: int) -> float:
    """Busy share of `places` worlds that wait for the slowest one of each round."""
    rounds = [times[first : first + places] for first in range(0, len(times), places)]
    return sum(times) / (places * sum(max(together) for together in rounds))


# The report -------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=8, help="in each form, a round")
    parser.add_argument("--worlds", type=int, default=4, help="environments of an agent")
    parser.add_argument("--rounds", type=int, default=3, help="all forms in turn; medians count")
    parser.add_argument("--output", type=Path, help="write all figures to this JSON file")
    arguments = parser.parse_args()
    job = make_job(arguments.checkpoint.absolute(), arguments.worlds)
    one_core = {min(os.sched_getaffinity(0))}
    figures: dict[str, Any] = {"one core": [], "two cores": []}
    forms = {"ours": ours, "lock-step": lock_step, "serial": serial}
    for number in range(arguments.rounds):
        costs = {
            name: in_process(form, one_core, job, arguments.episodes)
            for name, form in forms.items()
        }
        figures["one core"].append(costs)
        print(f"round {number + 1}", json.dumps(costs), flush=True)
    print_one_core(figures["one core"])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {**prepare_environment(True), "PYTHONPATH": os.getcwd()}},
    )
    episodes = 2 * arguments.episodes
    records: list[Any] = []
    for _ in range(arguments.rounds):
        walls = {"two processes": on_processes(job, 2, episodes)}
        walls["two actors"], records = on_actors(job, 2, episodes)
        walls["one process"] = on_processes(job, 1, episodes)
        walls["one actor"], _ = on_actors(job, 1, episodes)
        figures["two cores"].append(walls)
        print(json.dumps(walls), flush=True)
    ray.shutdown()
    print_two_cores(figures["two cores"], sum(record.steps for record in records))
    figures["episode seconds"] = [record.timing["wall_s"] for record in records]
    print_queue(figures["episode seconds"])
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=1))


def print_one_core(rounds: Sequence[dict[str, dict[str, float]]]) -> None:
    """CPU milliseconds a control step; what is left of the wall time is waiting and the rest."""
    print("\nOne core, milliseconds a control step (median of the rounds)")
    print(
        f"{'':10s} physics  rendering  inference  other+waiting  wall  environment/lock-step  wall"
    )
    for name in rounds[0]:
        ratios = [(_sides(costs, name), _sides(costs, "lock-step")) for costs in rounds]
        each = {
            part: statistics.median(1e3 * c[name][part] / c[name]["steps"] for c in rounds)
            for part in (PHYSICS, RENDERING, INFERENCE, "wall")
        }
        rest = each["wall"] - sum(each[part] for part in (PHYSICS, RENDERING, INFERENCE))
        environment = statistics.median(a[0] / b[0] for a, b in ratios)
        whole = statistics.median(a[1] / b[1] for a, b in ratios)
        print(
            f"{name:10s} {each[PHYSICS]:7.2f}  {each[RENDERING]:9.2f}  {each[INFERENCE]:9.2f}  "
            f"{rest:13.2f}  {each['wall']:4.1f}  {environment:21.3f}  {whole:4.2f}"
        )


def _sides(costs: dict[str, dict[str, float]], name: str) -> tuple[float, float]:
    """CPU seconds of physics and rendering, and wall seconds, of a control step."""
    form = costs[name]
    return (form[PHYSICS] + form[RENDERING]) / form["steps"], form["wall"] / form["steps"]


def print_two_cores(rounds: Sequence[dict[str, float]], steps: int) -> None:
    print("\nTwo cores (median of the rounds)")
    for name in rounds[0]:
        wall = statistics.median(walls[name] for walls in rounds)
        print(f"{name:14s} {steps / wall:6.0f} steps/s")
    beside = [walls["two processes"] / walls["two actors"] for walls in rounds]
    print(
        f"two actors / two processes: {statistics.median(beside):.3f} (rounds: "
        + ", ".join(f"{ratio:.3f}" for ratio in beside)
        + ")"
    )
    for kind in ("actor", "process"):
        plural = {"actor": "two actors", "process": "two processes"}[kind]
        gains = [walls[f"one {kind}"] / walls[plural] for walls in rounds]
        print(f"two / one {kind}: {statistics.median(gains):.2f}")


def print_queue(times: Sequence[float]) -> None:
    """The simulated share of busy time, for episodes drawn from the measured times."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(times, SIMULATED_EPISODES).tolist()
    print(
        f"\nBusy share, simulated with {SIMULATED_EPISODES} episodes (measured times: "
        f"{min(times):.2f} to {max(times):.2f} s)"
    )
    for places in SIMULATED_ACTORS:
        print(
            f"{places:3d} actors: queue {queue_efficiency(drawn, places):.3f}, "
            f"lock-step {lock_step_efficiency(drawn, places):.3f}"
        )


if __name__ == "__main__":
    main()
