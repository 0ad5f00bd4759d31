"""Candidates of an evaluation: settings, records, selection, and refused options."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imf_ray.checkpoint_dir import write_validation
from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.evaluation.candidates import (
    Candidate,
    require_settable,
    resolve_candidate,
    resolve_candidates,
    select_checkpoint,
)
from imf_ray.rollout.policy_spec import PolicySpec
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.training.checkpoint import save_checkpoint
from tests.helpers.configs import fresh_agent, tiny_config

QUICK = ("task.max_episode_steps=24",)


@pytest.fixture(scope="module")
def run_dir(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with three checkpoints of untrained agents."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(demonstrations)
    for step in (1, 2, 3):
        agent = fresh_agent(config, seed=step)
        save_checkpoint(folder, step, {"loss": 1.0}, agent, config, None, {})
    return folder


def checkpoint(run_dir: Path, step: int = 1) -> PolicySpec:
    return PolicySpec.parse(str(run_dir / f"checkpoint_{step:08d}"))


def test_options_of_the_checkpoint_are_refused() -> None:
    require_settable(
        ["evaluate.num_episodes=4", "task.shadows=true", "checkpoint=x", "debug=true"], "evaluate"
    )
    require_settable(["cluster=pools", "cluster.num_cpus=2", "data.format=act"], "compare")
    with pytest.raises(UserError, match=r"agent\.head\.n_emb=4 cannot be set here"):
        require_settable(["evaluate.num_episodes=4", "agent.head.n_emb=4"], "evaluate")
    with pytest.raises(UserError, match=r"evaluate\.video=all has no effect on this command"):
        require_settable(["evaluate.video=all"], "compare")


def test_settings_come_from_the_checkpoint_and_the_command_line(
    run_dir: Path, tmp_path: Path
) -> None:
    overrides = ["evaluate.num_action_steps=4", "evaluate.inference_steps=2", *QUICK]
    candidate = resolve_candidate(
        checkpoint(run_dir), load_config(overrides), overrides, 7, tmp_path
    )
    settings = candidate.evaluation.metadata.settings
    assert (settings["num_action_steps"], settings["inference_steps"]) == (4, 2)
    assert settings["noise_seed"] == 7 and settings["task"]["image_size"] == 48
    assert settings["task"]["max_episode_steps"] == 24
    assert settings["camera_names"] == ["r_vis", "top", "front"]
    assert candidate.evaluation.folder.parent == run_dir / "evaluations"
    other = resolve_candidate(checkpoint(run_dir), load_config(QUICK), QUICK, 7, tmp_path)
    assert other.evaluation.folder != candidate.evaluation.folder


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
def test_a_task_that_differs_from_the_training_task_is_refused(
    run_dir: Path, tmp_path: Path, option: str, reason: str
) -> None:
    with pytest.raises(UserError, match=f"{reason}.*evaluate.allow_task_mismatch=true"):
        resolve_candidate(checkpoint(run_dir), load_config([option]), [option], 0, tmp_path)


def test_a_different_task_can_be_allowed(run_dir: Path, tmp_path: Path) -> None:
    overrides = ["task.shadows=true", "evaluate.allow_task_mismatch=true"]
    candidate = resolve_candidate(
        checkpoint(run_dir), load_config(overrides), overrides, 0, tmp_path
    )
    assert candidate.evaluation.metadata.settings["task"]["shadows"] is True


def test_a_policy_that_does_not_fit_the_task_is_refused(run_dir: Path, tmp_path: Path) -> None:
    blind = ["data.camera_names=[top]", "evaluate.allow_task_mismatch=true"]
    with pytest.raises(UserError, match=r"asks for \['r_vis', 'front'\]"):
        resolve_candidate(checkpoint(run_dir), load_config(blind), blind, 0, tmp_path)
    unknown = ["data.camera_names=[r_vis,top,front,wrist]", "evaluate.allow_task_mismatch=true"]
    with pytest.raises(UserError, match="wrist"):
        resolve_candidate(checkpoint(run_dir), load_config(unknown), unknown, 0, tmp_path)
    for options in (["task.action_space=ee"], ["task.action_space=ee", blind[1]]):
        with pytest.raises(UserError, match=r"joint, but task\.action_space=ee"):
            resolve_candidate(checkpoint(run_dir), load_config(options), options, 0, tmp_path)
    slow = ["task.control_hz=25", "evaluate.allow_task_mismatch=true"]
    with pytest.raises(UserError, match="50 Hz"):
        resolve_candidate(checkpoint(run_dir), load_config(slow), slow, 0, tmp_path)
    with pytest.raises(UserError, match="not a checkpoint"):
        resolve_candidate(PolicySpec.parse(str(tmp_path)), load_config(), [], 0, tmp_path)


def test_a_corrupted_checkpoint_is_refused(run_dir: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(checkpoint(run_dir).path, tmp_path / "checkpoint_00000001"))
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors was changed"):
        resolve_candidate(PolicySpec.parse(str(damaged)), load_config(), [], 0, tmp_path)


def test_a_comparison_includes_the_baselines(run_dir: Path, tmp_path: Path) -> None:
    policies = [checkpoint(run_dir, 1), checkpoint(run_dir, 2)]
    candidates = resolve_candidates(policies, load_config(QUICK), QUICK, tmp_path)
    one, two, expert, untrained = (candidate.name for candidate in candidates)
    assert (one, two) == (
        f"{run_dir.name}/checkpoint_00000001",
        f"{run_dir.name}/checkpoint_00000002",
    )
    assert expert == "expert" and "untrained" in untrained
    task = candidates[2].evaluation.metadata.settings["task"]
    assert task["image_size"] == 48  # the expert acts in the checkpoint's task
    without = load_config([*QUICK, "compare.baselines=false"])
    assert len(resolve_candidates(policies, without, QUICK, tmp_path)) == 2
    with pytest.raises(UserError, match="given twice"):
        resolve_candidates([policies[0], policies[0]], without, QUICK, tmp_path)


def _record(seed: int, success: bool) -> EpisodeRecord:
    return EpisodeRecord(seed, success, 4 if success else 0, 4, 1.0, 24, {}, "p", {})


def test_the_best_checkpoint_is_selected_on_separate_seeds(run_dir: Path) -> None:
    config = load_config([*QUICK, "evaluate.selection_episodes=4"])
    candidates = []

    def evaluate(candidate: Candidate) -> list[EpisodeRecord]:
        candidates.append(candidate)
        num_successes = {1: 1, 2: 3, 3: 2}[int(candidate.name[-1])]
        return [_record(seed, seed < num_successes) for seed in range(4)]

    best, results = select_checkpoint(run_dir, config, QUICK, evaluate)
    assert best.name == "checkpoint_00000002" and len(results) == 3
    noise = {c.evaluation.metadata.settings["noise_seed"] for c in candidates}
    assert noise == {config.evaluate.selection_seed}
    overlapping = load_config(
        ["evaluate.checkpoint_selection=best-of-run", "evaluate.selection_seed=500049"]
    )
    with pytest.raises(UserError, match="500049-500068 and evaluated on 500000-500049"):
        select_checkpoint(run_dir, overlapping, [], evaluate)
    with pytest.raises(UserError, match="no valid checkpoint"):
        select_checkpoint(run_dir / "nowhere", config, QUICK, evaluate)


def test_the_action_error_decides_between_equal_success_rates(
    run_dir: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(run_dir, tmp_path / "own"))
    for step, error in ((1, 0.2), (2, 0.1), (3, 0.3)):
        write_validation(Path(checkpoint(own, step).path), {"action_error": error})
    best, _ = select_checkpoint(own, load_config(QUICK), QUICK, lambda c: [_record(0, True)])
    assert best.name == "checkpoint_00000002"
