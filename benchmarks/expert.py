"""Success rate of the scripted expert over a range of seeds, headless and without pictures.

python benchmarks/expert.py --start 0 --episodes 200 --processes 2 --action-space joint
"""

import argparse
import functools
import multiprocessing
import time

from imf_ray.rollout.success import wilson_interval
from imf_ray.sim.expert import TransferExpert
from imf_ray.sim.transfer import SimTransferEnv

EPISODE_STEPS = 400


def succeeds(seed: int, action_space: str) -> bool:
    """Plays one episode of the expert and tells whether it succeeded."""
    env = SimTransferEnv(action_space=action_space, render_images=False)
    _, info = env.reset(seed=seed)
    expert = TransferExpert(env)
    expert.reset()
    for _ in range(EPISODE_STEPS):
        joint_action, ee_action = expert.act()
        *_, info = env.step(joint_action if action_space == "joint" else ee_action)
    return bool(info["success"])


def main() -> None:
    """Parses the command line, plays the episodes, prints the rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--action-space", choices=("joint", "ee"), default="joint")
    args = parser.parse_args()

    seeds = range(args.start, args.start + args.episodes)
    play = functools.partial(succeeds, action_space=args.action_space)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        began = time.perf_counter()
        outcomes = pool.map(play, seeds, chunksize=1)
        seconds = time.perf_counter() - began

    wins = sum(outcomes)
    low, high = wilson_interval(wins, len(outcomes))
    failures = [seed for seed, success in zip(seeds, outcomes, strict=True) if not success]
    print(f"seeds {seeds.start}..{seeds.stop - 1}, action space {args.action_space}")
    print(f"successes {wins} of {len(outcomes)}, 95 % Wilson {low:.4f}-{high:.4f}")
    print(f"failed seeds: {failures}")
    steps = len(outcomes) * EPISODE_STEPS
    print(f"{steps / seconds:.0f} steps/s in {args.processes} processes, start-up included")


if __name__ == "__main__":
    main()
