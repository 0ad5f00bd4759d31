"""Scripted experts: success, smooth motion, and replay of their actions."""

import numpy as np
import pytest

from imf_ray.sim.bimanual import CONTROL_HZ
from imf_ray.sim.factory import make_expert
from imf_ray.sim.tasks.insert import InsertExpert, SimAirInsertEnv
from imf_ray.sim.tasks.transfer import SimTransferEnv, TransferExpert

EPISODE_STEPS = 400
SPEED_LIMITS = np.radians([170, 150, 150, 150, 180, 180, 220])  # rad/s, of the Diana 7
EXPERTS = {SimTransferEnv: TransferExpert, SimAirInsertEnv: InsertExpert}


def plan(env, steps=EPISODE_STEPS):
    """Return the joint actions (steps, 16) of a new expert without stepping the env."""
    expert = EXPERTS[type(env)](env)
    expert.reset()
    return np.stack([expert.act()[0] for _ in range(steps)])


def play(env, seed, action_space="joint"):
    """Run an expert episode; return actions (400, 16), stages (400,) and the last info."""
    env.reset(seed=seed)
    expert = EXPERTS[type(env)](env)
    expert.reset()
    actions, stages = [], []
    for _ in range(EPISODE_STEPS):
        joint_action, ee_action = expert.act()
        actions.append(joint_action if action_space == "joint" else ee_action)
        *_, info = env.step(actions[-1])
        stages.append(info["stage"])
    return np.stack(actions), np.array(stages), info


@pytest.mark.parametrize("action_space", ["joint", "ee"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expert_succeeds(make_env, kind, seed, action_space):
    _, stages, info = play(make_env(kind, action_space=action_space), seed, action_space)
    assert info["success"] is True and info["max_stage"] == kind.num_stages
    assert np.array_equal(np.unique(stages), np.arange(kind.num_stages + 1))
    assert (np.diff(stages) >= 0).all()


def test_recorded_actions_replay_bitwise_from_the_seed(make_env, kind):
    env = make_env(kind)
    actions, *_ = play(env, seed=7)
    assert actions.dtype == np.float32
    replay = make_env(kind)
    replay.reset(seed=7)
    for action in actions:
        replay.step(action)
    assert np.array_equal(env.get_state(), replay.get_state())


@pytest.mark.parametrize("seed", range(4))
def test_motion_is_smooth_and_within_the_speed_limits(make_env, kind, seed):
    env = make_env(kind)
    env.reset(seed=seed)
    joints = plan(env).reshape(EPISODE_STEPS, 2, 8)[..., :7].astype(np.float64)
    speed = np.diff(joints, axis=0) * CONTROL_HZ
    acceleration = np.diff(speed, axis=0) * CONTROL_HZ
    assert (np.abs(speed) < 0.7 * SPEED_LIMITS).all()
    assert np.abs(acceleration).max() < 6  # rad/s^2


def test_the_expert_is_a_function_of_the_objects_poses(make_env, kind):
    env = make_env(kind)
    _, info = env.reset(seed=11)
    planned = plan(env)
    env.reset(seed=99, options={"poses": info["poses"]})
    assert np.array_equal(planned, plan(env))
    env.reset(seed=99)
    assert not np.array_equal(planned, plan(env))


def test_planning_does_not_change_the_env(make_env, kind):
    env = make_env(kind)
    env.reset(seed=0)
    before = env.get_state()
    plan(env, steps=10)
    assert np.array_equal(before, env.get_state())


def test_experts_are_made_by_environment_id(make_env):
    assert isinstance(make_expert("imf_ray/SimTransfer-v0", make_env()), TransferExpert)
    with pytest.raises(ValueError, match=r"CartPole-v1 has no scripted expert.*SimTransfer-v0"):
        make_expert("CartPole-v1", make_env())
