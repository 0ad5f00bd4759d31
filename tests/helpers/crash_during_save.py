"""Kills processes that save checkpoints at random moments, and checks the files they leave.

`python -m tests.helpers.crash_during_save FOLDER DATA KILLS` prints the number of processes that
were killed while a checkpoint was incomplete.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from imf_ray.agents.pretrained import load_agent, make_agent
from imf_ray.checkpoint_dir import PARTIAL_PREFIX
from imf_ray.training.checkpoint import load_train_state, save_checkpoint
from imf_ray.training.run_dir import RunDir
from tests.helpers.configs import tiny_config

KEEP_LAST, WARM_UP_SAVES = 2, 5


def main(run_dir: Path, data: Path, kills: int) -> None:
    """Kill `kills` processes while they save. All remaining checkpoints must load.

    Raises:
        AssertionError: a checkpoint was lost, or its contents differ from the saved state.
    """
    torch.set_num_threads(1)
    config = tiny_config(data)
    agent = make_agent(config.agent, config.task.action_space)

    def save(step: int) -> None:
        with torch.no_grad():
            next(agent.parameters()).fill_(step)
        state = {"step": step, "moments": torch.full((50_000,), float(step))}
        ema = {name: value.clone() for name, value in agent.state_dict().items()}
        save_checkpoint(run_dir, step, {"loss": 1.0 / step}, agent, config, ema, state)
        RunDir(run_dir).prune_checkpoints(KEEP_LAST, pending=lambda step: False)

    save_s, last_step = float("inf"), 0
    for last_step in range(1, WARM_UP_SAVES + 1):
        start = time.perf_counter()
        save(last_step)
        save_s = min(save_s, time.perf_counter() - start)
    rng, num_incomplete = random.Random(0), 0
    for _ in range(kills):
        parent, child = os.getpid(), os.fork()
        if child == 0:
            step = last_step
            while os.getppid() == parent:
                step += 1
                save(step)
            os._exit(1)
        time.sleep(rng.uniform(0.0, 3.0 * save_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        num_incomplete += any(run_dir.glob(f"{PARTIAL_PREFIX}*"))
        newest = RunDir(run_dir).newest_checkpoint()
        assert newest is not None and newest.step >= last_step, (newest, last_step)
        last_step = newest.step
        state = load_train_state(newest.path, "cpu")
        assert state["step"] == last_step and (state["moments"] == last_step).all()
        weights = next(load_agent(newest.path)[0].parameters())
        assert (weights == last_step).all()
        # The newest ones, the best one, and one that is not pruned yet.
        assert len(RunDir(run_dir).list_checkpoints()) <= KEEP_LAST + 2
    print(num_incomplete)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
