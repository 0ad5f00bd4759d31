"""Success rate of a task's scripted expert over a range of seeds, without rendering.

python -m benchmarks.expert --task sim_transfer --start 0 --episodes 200 --processes 2
"""

import argparse
import functools
import multiprocessing
import time
from typing import cast

from imf_ray.config import load_config
from imf_ray.rollout.confidence_intervals import wilson_interval
from imf_ray.schema import TaskConfig
from imf_ray.sim.base import SimEnv
from imf_ray.sim.factory import make_env, make_expert


def run_episode(seed: int, task: TaskConfig) -> tuple[int, bool]:
    """Run one episode of the expert; return its highest stage and success."""
    env = make_env(task.env_id, render_images=False, **task.env_kwargs(camera_names=()))
    expert = make_expert(task.env_id, cast(SimEnv, env.unwrapped))
    _, info = env.reset(seed=seed)
    expert.reset()
    over = False
    while not over:
        joint_action, ee_action = expert.act()
        action = joint_action if task.action_space == "joint" else ee_action
        *_, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return info["max_stage"], info["success"]


def main() -> None:
    """Parse the command line, run the episodes and print the rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sim_transfer", help="as in `imf_ray.evaluate task=`")
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--action-space", choices=("joint", "ee"), default="joint")
    args = parser.parse_args()

    seeds = range(args.start, args.start + args.episodes)
    task = load_config([f"task={args.task}", f"task.action_space={args.action_space}"]).task
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        start = time.perf_counter()
        outcomes = pool.map(functools.partial(run_episode, task=task), seeds, chunksize=1)
        seconds = time.perf_counter() - start

    wins = sum(success for _, success in outcomes)
    low, high = wilson_interval(wins, len(outcomes))
    print(f"{args.task}, seeds {seeds.start}..{seeds.stop - 1}, action space {args.action_space}")
    print(f"successes {wins} of {len(outcomes)}, 95 % Wilson {low:.4f}-{high:.4f}")
    failed = {seed: stage for seed, (stage, won) in zip(seeds, outcomes, strict=True) if not won}
    print(f"failed seeds and their highest stages: {failed}")
    episode_s = args.processes * seconds / len(outcomes)
    print(f"{episode_s:.2f} s per episode in each of {args.processes} processes, with start-up")


if __name__ == "__main__":
    main()
