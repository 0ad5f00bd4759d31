"""Cost of an evaluation: `EpisodeRunner`, a lock-step vector environment and a serial loop.

    python -m benchmarks.rollout --checkpoint RUN/checkpoint_00000300 --episodes 8 --rounds 3

All forms run the same policy on the same episodes, in full length, with the same render flags and
one thread per process. It measures:

1. On one core, the CPU seconds of physics, rendering and inference in each form. `imf_ray` is an
   `EpisodeRunner` with `--envs` envs. `lock-step` is gymnasium's `AsyncVectorEnv` of as many
   environments, which renders every frame, as LeRobot's evaluation does. `serial` renders every
   frame of one environment, as RoboIMI's and ACT's evaluations do.
2. On two cores, the throughput of two Ray actors and of two plain processes.
3. The utilization of 8 and 64 actors, simulated with measured episode times.

Start-up (imports, loading, making environments) is not included.
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
    """CPU seconds of all threads of this process, by activity."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def on(self, activity: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[activity] += time.process_time() - start


METER = Meter()


class MeteredTransferEnv(SimTransferEnv):
    """The transfer task with metered CPU time. The `info` of a step has the totals so far."""

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


class MeteredPolicy(AgentPolicy):
    """An agent with metered predictions."""

    def predict_chunks(self, episodes: Any, timers: Any) -> None:
        with METER.on(INFERENCE):
            super().predict_chunks(episodes, timers)


def make_spec(checkpoint: Path, num_envs: int) -> RolloutSpec:
    """Return the rollout of a checkpoint on its own task, metered, with one batch for all envs."""
    config = load_policy_config(checkpoint)
    settings = agent_rollout_config(config, noise_seed=0)
    task = replace(config.task, env_id=ENV_ID)
    return RolloutSpec(
        PolicySpec.parse(str(checkpoint)),
        replace(settings, task=task, inference_batch_size=num_envs),
        num_envs,
    )


def make_runner(spec: RolloutSpec) -> EpisodeRunner:
    agent, _ = load_agent(spec.policy.local_path)
    return EpisodeRunner(
        MeteredPolicy(agent, "metered", spec.config), spec.config, spec.envs_per_actor
    )


def run_episodes(runner: EpisodeRunner, num_envs: int, seeds: Sequence[int]) -> list[Any]:
    """Run all episodes. A free env starts the next seed at once."""
    waiting, records = list(seeds), []
    for seed in waiting[:num_envs]:
        runner.start(seed)
    waiting = waiting[num_envs:]
    while len(records) < len(seeds):
        for episode in runner.run_until_any_done():
            records.append(episode.record)
            if waiting:
                runner.start(waiting.pop(0))
    return records


# 1. One core ------------------------------------------------------------------------------------


def imf_ray_runner(spec: RolloutSpec, episodes: int) -> dict[str, float]:
    """Run several envs in this process and render images only when the policy needs them."""
    runner = make_runner(spec)
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    return _timed(lambda: sum(r.steps for r in run_episodes(runner, spec.envs_per_actor, seeds)))


def serial(spec: RolloutSpec, episodes: int) -> dict[str, float]:
    """Run one environment after the other, with every frame rendered and one call per chunk."""
    agent, _ = load_agent(spec.policy.local_path)
    env = make_rendering_env(spec)

    def run() -> int:
        steps = 0
        for seed in range(FIRST_SEED, FIRST_SEED + episodes):
            observation, _ = env.reset(seed=seed)
            agent.reset()
            done = False
            while not done:
                action = _select(agent, batch_of_one(observation))[0]
                observation, _, terminated, truncated, _ = env.step(action)
                done = terminated or truncated
                steps += 1
        return steps

    return _timed(run)


def lock_step(spec: RolloutSpec, episodes: int) -> dict[str, float]:
    """Run environments in separate processes that wait for each other at every step."""
    agent, _ = load_agent(spec.policy.local_path)
    env = gymnasium.vector.AsyncVectorEnv(
        [lambda: make_rendering_env(spec)] * spec.envs_per_actor, context="spawn"
    )
    spent_in_envs: dict[str, float] = {}

    def run() -> int:
        steps, last = 0, {}
        for first in range(FIRST_SEED, FIRST_SEED + episodes, spec.envs_per_actor):
            observation, _ = env.reset(seed=list(range(first, first + spec.envs_per_actor)))
            agent.reset()
            done = np.zeros(spec.envs_per_actor, bool)
            while not done.all():
                actions = _select(agent, observation)
                observation, _, terminated, truncated, last = env.step(actions)
                done |= terminated | truncated
                steps += spec.envs_per_actor
        spent_in_envs.update({name: float(last[name].sum()) for name in (PHYSICS, RENDERING)})
        return steps

    result = _timed(run)
    env.close()
    return result | spent_in_envs


def make_rendering_env(spec: RolloutSpec) -> Any:
    torch.set_num_threads(1)
    settings = spec.config
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
    """Return the result of a form, run in a separate process with its children on `cores`."""
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


def on_actors(spec: RolloutSpec, actors: int, episodes: int) -> tuple[float, list[Any]]:
    """Return the seconds of all episodes on ready Ray actors, and the records."""
    pool = RolloutActorPool(
        spec, range(FIRST_SEED, FIRST_SEED + episodes), RolloutResources(actors, 1.0), {}
    )
    pool.wait_until_ready()
    start = time.perf_counter()
    records = [result.record for result in pool.run()]
    wall = time.perf_counter() - start
    pool.stop()
    return wall, records


def on_processes(spec: RolloutSpec, processes: int, episodes: int) -> float:
    """Return the seconds of all episodes in plain processes that divide them equally."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes + 1), context.Queue()
    share = episodes // processes
    workers = [
        context.Process(target=_plain, args=(spec, range(first, first + share), barrier, queue))
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


def _plain(spec: RolloutSpec, seeds: range, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    runner = EpisodeRunner(make_policy(spec.policy, spec.config), spec.config, spec.envs_per_actor)
    barrier.wait()
    run_episodes(runner, spec.envs_per_actor, seeds)
    queue.put(None)


# 3. Simulated actors --------------------------------------------------------------------------


def queue_efficiency(times: Sequence[float], num_envs: int) -> float:
    """Return the busy fraction of `num_envs` envs that start the next episode when free."""
    free = [0.0] * num_envs
    for seconds in times:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return sum(times) / (num_envs * max(free))


def lock_step_efficiency(times: Sequence[float], num_envs: int) -> float:
    """Return the busy fraction of `num_envs` envs that wait for the slowest one of each round."""
    rounds = [times[first : first + num_envs] for first in range(0, len(times), num_envs)]
    return sum(times) / (num_envs * sum(max(episode_times) for episode_times in rounds))


# The report -------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=8, help="per form and round")
    parser.add_argument("--envs", type=int, default=4, help="environments per agent")
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of all forms; medians are reported"
    )
    parser.add_argument("--output", type=Path, help="write all measurements to this JSON file")
    arguments = parser.parse_args()
    spec = make_spec(arguments.checkpoint.absolute(), arguments.envs)
    one_core = {min(os.sched_getaffinity(0))}
    measurements: dict[str, Any] = {"one core": [], "two cores": []}
    forms = {"imf_ray": imf_ray_runner, "lock-step": lock_step, "serial": serial}
    for number in range(arguments.rounds):
        costs = {
            name: in_process(form, one_core, spec, arguments.episodes)
            for name, form in forms.items()
        }
        measurements["one core"].append(costs)
        print(f"round {number + 1}", json.dumps(costs), flush=True)
    print_one_core(measurements["one core"])
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
        walls = {"two processes": on_processes(spec, 2, episodes)}
        walls["two actors"], records = on_actors(spec, 2, episodes)
        walls["one process"] = on_processes(spec, 1, episodes)
        walls["one actor"], _ = on_actors(spec, 1, episodes)
        measurements["two cores"].append(walls)
        print(json.dumps(walls), flush=True)
    ray.shutdown()
    print_two_cores(measurements["two cores"], sum(record.steps for record in records))
    measurements["episode seconds"] = [record.timing["wall_s"] for record in records]
    print_queue(measurements["episode seconds"])
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(measurements, indent=1))


def print_one_core(rounds: Sequence[dict[str, dict[str, float]]]) -> None:
    """Print CPU milliseconds per control step; the rest of the wall time is mostly waiting."""
    print("\nOne core, milliseconds per control step (median of the rounds)")
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
    """Return CPU seconds of physics and rendering, and wall seconds, per control step."""
    form = costs[name]
    return (form[PHYSICS] + form[RENDERING]) / form["steps"], form["wall"] / form["steps"]


def print_two_cores(rounds: Sequence[dict[str, float]], steps: int) -> None:
    print("\nTwo cores (median of the rounds)")
    for name in rounds[0]:
        wall = statistics.median(walls[name] for walls in rounds)
        print(f"{name:14s} {steps / wall:6.0f} steps/s")
    ratios = [walls["two processes"] / walls["two actors"] for walls in rounds]
    print(
        f"two actors / two processes: {statistics.median(ratios):.3f} (rounds: "
        + ", ".join(f"{ratio:.3f}" for ratio in ratios)
        + ")"
    )
    for kind in ("actor", "process"):
        plural = {"actor": "two actors", "process": "two processes"}[kind]
        gains = [walls[f"one {kind}"] / walls[plural] for walls in rounds]
        print(f"two / one {kind}: {statistics.median(gains):.2f}")


def print_queue(times: Sequence[float]) -> None:
    """Print the simulated busy fraction, for episode times sampled from the measured ones."""
    rng = np.random.default_rng(0)
    sampled = rng.choice(times, SIMULATED_EPISODES).tolist()
    print(
        f"\nBusy fraction, simulated with {SIMULATED_EPISODES} episodes (measured times: "
        f"{min(times):.2f} to {max(times):.2f} s)"
    )
    for num_envs in SIMULATED_ACTORS:
        print(
            f"{num_envs:3d} actors: queue {queue_efficiency(sampled, num_envs):.3f}, "
            f"lock-step {lock_step_efficiency(sampled, num_envs):.3f}"
        )


if __name__ == "__main__":
    main()
