"""The scripted expert: it succeeds, moves smoothly, and its episodes can be replayed."""

import gymnasium
import numpy as np
import pytest

from imf_ray.sim.bimanual import CONTROL_HZ
from imf_ray.sim.expert import TransferExpert
from imf_ray.sim.experts import EXPERTS, make_expert

EPISODE_STEPS = 400
SPEED_LIMITS = np.radians([170, 150, 150, 150, 180, 180, 220])  # rad/s, of the Diana 7


def play(env, seed, action_space="joint"):
    """One expert episode: the actions (400, 16), the stages (400,), and the last info."""
    env.reset(seed=seed)
    expert = TransferExpert(env)
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
def test_expert_succeeds(make_env, seed, action_space):
    _, stages, info = play(make_env(action_space=action_space), seed, action_space)
    assert info["success"] is True and info["max_stage"] == 4
    assert np.array_equal(np.unique(stages), [0, 1, 2, 3, 4])
    assert (np.diff(stages) >= 0).all()


def test_recorded_actions_replay_bitwise_from_the_seed(make_env):
    env = make_env()
    actions, *_ = play(env, seed=7)
    assert actions.dtype == np.float32
    replay = make_env()
    replay.reset(seed=7)
    for action in actions:
        replay.step(action)
    assert np.array_equal(env.get_state(), replay.get_state())


def test_motion_is_smooth_and_within_the_speed_limits(make_env):
    actions, *_ = play(make_env(), seed=4)
    joints = actions.reshape(EPISODE_STEPS, 2, 8)[..., :7].astype(np.float64)
    speed = np.diff(joints, axis=0) * CONTROL_HZ
    acceleration = np.diff(speed, axis=0) * CONTROL_HZ
    assert (np.abs(speed) < 0.6 * SPEED_LIMITS).all()
    assert np.abs(acceleration).max() < 6  # rad/s^2


def test_expert_is_a_function_of_the_cube_pose(make_env):
    env = make_env()
    _, info = env.reset(seed=11)
    first, again = TransferExpert(env), TransferExpert(env)
    first.reset()
    planned = [first.act()[0] for _ in range(100)]
    env.reset(seed=99, options={"poses": {"cube": info["poses"]["cube"]}})
    again.reset()
    assert np.array_equal(planned, [again.act()[0] for _ in range(100)])


def test_experts_are_made_by_environment_id(make_env):
    assert isinstance(make_expert("imf_ray/SimTransfer-v0", make_env()), TransferExpert)
    with pytest.raises(ValueError, match=r"CartPole-v1 has no scripted expert.*SimTransfer-v0"):
        make_expert("CartPole-v1", make_env())
    assert set(EXPERTS) <= set(gymnasium.registry)


def test_planning_leaves_the_environment_alone(make_env):
    env = make_env()
    env.reset(seed=0)
    before = env.get_state()
    expert = TransferExpert(env)
    expert.reset()
    for _ in range(10):
        expert.act()
    assert np.array_equal(before, env.get_state())
