"""Who is judged, how, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.evaluation.candidates import (
    require_settable,
    resolve_candidate,
    resolve_candidates,
    select_checkpoint,
)
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.training.checkpoint import save_checkpoint, write_validation
from tests.helpers.configs import fresh_agent, tiny_config

QUICK = ("task.max_episode_steps=24",)


@pytest.fixture(scope="module")
def run_dir(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints of agents that learnt nothing."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(demonstrations)
    for step in (1, 2, 3):
        agent = fresh_agent(config, seed=step)
        save_checkpoint(folder, step, {"loss": 1.0}, agent, config, None, {})
    return folder


def checkpoint(run_dir: Path, step: int = 1) -> str:
    return str(run_dir / f"checkpoint_{step:08d}")


def test_options_of_the_checkpoint_are_refused() -> None:
    settable = ["evaluate.num_episodes=4", "task.shadows=true", "checkpoint=x", "debug=true"]
    require_settable(settable, "evaluate")
    require_settable(["cluster=pools", "cluster.num_cpus=2", "data.format=act"], "compare")
    with pytest.raises(UserError, match=r"agent\.head\.n_emb=4 cannot be set here"):
        require_settable(["evaluate.num_episodes=4", "agent.head.n_emb=4"], "evaluate")
    with pytest.raises(UserError, match=r"evaluate\.video=all means nothing to this command"):
        require_settable(["evaluate.video=all"], "compare")


def test_the_judgement_says_how_the_policy_is_executed(run_dir: Path, tmp_path: Path) -> None:
    overrides = ["evaluate.num_action_steps=4", "evaluate.inference_steps=2", *QUICK]
    contender = resolve_candidate(
        checkpoint(run_dir), load_config(overrides), overrides, 7, tmp_path
    )
    settings = contender.judgement.identity.settings
    assert (settings["num_action_steps"], settings["inference_steps"]) == (4, 2)
    assert settings["noise_seed"] == 7 and settings["task"]["image_size"] == 48
    assert settings["task"]["max_episode_steps"] == 24
    assert settings["camera_names"] == ["r_vis", "top", "front"]
    assert contender.judgement.folder.parent == run_dir / "evaluations"
    other = resolve_candidate(checkpoint(run_dir), load_config(QUICK), QUICK, 7, tmp_path)
    assert other.judgement.folder != contender.judgement.folder


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("task.shadows=true", r"task.shadows=True \(trained with False\)"),
        ("task.image_size=64", r"task.image_size=64 \(trained with 48\)"),
        ("task.control_hz=25", r"task.control_hz=25 \(trained with 50\)"),
        ("task=sim_air_insert", r"task.env_id=imf_ray/SimAirInsert-v0 \(trained with"),
        ("data.camera_names=[top]", r"data.camera_names=\['top'\] \(trained with"),
    ],
)
def test_what_a_checkpoint_was_not_trained_for_is_refused(
    run_dir: Path, tmp_path: Path, option: str, reason: str
) -> None:
    with pytest.raises(UserError, match=f"{reason}.*evaluate.allow_task_mismatch=true"):
        resolve_candidate(checkpoint(run_dir), load_config([option]), [option], 0, tmp_path)


def test_a_mismatch_may_be_asked_for(run_dir: Path, tmp_path: Path) -> None:
    overrides = ["task.shadows=true", "evaluate.allow_task_mismatch=true"]
    contender = resolve_candidate(
        checkpoint(run_dir), load_config(overrides), overrides, 0, tmp_path
    )
    assert contender.judgement.identity.settings["task"]["shadows"] is True


def test_what_cannot_be_judged_is_named(run_dir: Path, tmp_path: Path) -> None:
    blind = ["data.camera_names=[top]", "evaluate.allow_task_mismatch=true"]
    with pytest.raises(UserError, match=r"asks for \['r_vis', 'front'\]"):
        resolve_candidate(checkpoint(run_dir), load_config(blind), blind, 0, tmp_path)
    unknown = ["data.camera_names=[r_vis,top,front,wrist]", "evaluate.allow_task_mismatch=true"]
    with pytest.raises(UserError, match="wrist"):
        resolve_candidate(checkpoint(run_dir), load_config(unknown), unknown, 0, tmp_path)
    slow = ["task.control_hz=25", "evaluate.allow_task_mismatch=true"]
    with pytest.raises(UserError, match="50 Hz"):
        resolve_candidate(checkpoint(run_dir), load_config(slow), slow, 0, tmp_path)
    with pytest.raises(UserError, match="is not a checkpoint"):
        resolve_candidate(str(tmp_path), load_config(), [], 0, tmp_path)


def test_a_corrupted_checkpoint_is_refused(run_dir: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(checkpoint(run_dir), tmp_path / "checkpoint_00000001"))
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors was changed"):
        resolve_candidate(str(damaged), load_config(), [], 0, tmp_path)


def test_baselines_stand_beside_the_policies(run_dir: Path, tmp_path: Path) -> None:
    policies = [checkpoint(run_dir, 1), checkpoint(run_dir, 2)]
    contenders = resolve_candidates(policies, load_config(QUICK), QUICK, tmp_path)
    one, two, expert, untrained = (contender.name for contender in contenders)
    assert (one, two) == (
        f"{run_dir.name}/checkpoint_00000001",
        f"{run_dir.name}/checkpoint_00000002",
    )
    assert expert == "expert" and "untrained" in untrained
    task = contenders[2].judgement.identity.settings["task"]
    assert task["image_size"] == 48  # the expert plays the checkpoint's task
    without = load_config([*QUICK, "compare.baselines=false"])
    assert len(resolve_candidates(policies, without, QUICK, tmp_path)) == 2
    with pytest.raises(UserError, match="named twice"):
        resolve_candidates([policies[0], policies[0]], without, QUICK, tmp_path)


def _record(seed: int, success: bool) -> EpisodeRecord:
    return EpisodeRecord(seed, success, 4 if success else 0, 4, 1.0, 24, {}, "p", {})


def test_the_best_of_a_run_is_chosen_on_other_seeds(run_dir: Path) -> None:
    config = load_config([*QUICK, "evaluate.selection_episodes=4"])
    asked = []

    def judge(contender):
        asked.append(contender)
        number = int(contender.name[-1])
        return [_record(seed, seed < {1: 1, 2: 3, 3: 2}[number]) for seed in range(4)]

    best, judged = select_checkpoint(run_dir, config, QUICK, judge)
    assert best.name == "checkpoint_00000002" and len(judged) == 3
    noise = {c.judgement.identity.settings["noise_seed"] for c in asked}
    assert noise == {config.evaluate.selection_seed}
    overlapping = load_config(
        ["evaluate.checkpoint_selection=best-of-run", "evaluate.selection_seed=500049"]
    )
    with pytest.raises(UserError, match="500049-500068 and reported on 500000-500049"):
        select_checkpoint(run_dir, overlapping, [], judge)
    with pytest.raises(UserError, match="no valid checkpoint"):
        select_checkpoint(run_dir / "nowhere", config, QUICK, judge)


def test_equal_success_is_decided_by_the_action_error(run_dir: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run_dir, tmp_path / "own"))
    for step, error in ((1, 0.2), (2, 0.1), (3, 0.3)):
        write_validation(Path(checkpoint(own, step)), {"action_error": error})
    best, _ = select_checkpoint(own, load_config(QUICK), QUICK, lambda c: [_record(0, True)])
    assert best.name == "checkpoint_00000002"
