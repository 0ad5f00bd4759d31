"""Old names of options and values."""

from pathlib import Path

import pytest
import yaml

from imf_ray.aliases import OPTIONS, VALUES, rename_options, rename_overrides
from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.config import (
    announce_rename,
    apply_overrides,
    config_from_dict,
    config_to_dict,
    dedupe_overrides,
    load_config,
)
from imf_ray.errors import UserError
from imf_ray.schema import Config, all_options
from tests.helpers import REPO_ROOT

OLD_SECTIONS = {
    "agent": {"condition": "multi_token", "time_sampler": "corner", "draws_per_observation": 2},
    "data": {"chunk_steps": 20, "resize": True},
    "task": {
        "env_id": "gym_aloha/AlohaTransferCube-v0",
        "adapter": {
            "world": "imf_ray.sim.aloha:AlohaWorld",
            "cameras": {"top": "top"},
            "qpos": ["agent_pos"],
            "stages": [1, 2],
            "success_rule": "two",
        },
    },
    "train": {"autocast": "none", "keep_last": 3},
}
"""Parts of a configuration as version 0.1 saved it."""


@pytest.fixture(autouse=True)
def no_earlier_notices() -> None:
    announce_rename.cache_clear()


def check_translated(config: Config) -> None:
    assert config.agent.conditioning == "multi_token"
    assert config.agent.time_sampler == "endpoint_mix"
    assert config.agent.noise_samples_per_obs == 2
    assert config.data.read_block_steps == 20 and config.data.resize_images
    assert config.task.adapter is not None
    assert (
        config.task.adapter.env_class
        == VALUES["task.adapter.env_class"]["imf_ray.sim.aloha:AlohaWorld"]
    )
    assert config.task.adapter.stage_thresholds == [1.0, 2.0]
    assert config.task.adapter.success_description == "two"
    assert config.train.encoder_precision == "fp32" and config.train.keep_last_k == 3


def test_the_table_leads_to_current_options() -> None:
    assert set(OPTIONS.values()) <= set(all_options())
    assert not set(OPTIONS) & set(all_options())
    assert set(VALUES) <= set(all_options())


def test_saved_configurations_are_translated_silently(capsys: pytest.CaptureFixture[str]) -> None:
    agent = {**config_to_dict(load_config())["agent"], **OLD_SECTIONS["agent"]}
    del agent["conditioning"], agent["noise_samples_per_obs"]
    check_translated(config_from_dict({**OLD_SECTIONS, "agent": agent}))
    assert capsys.readouterr().err == ""


def test_config_option_takes_an_old_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OLD_SECTIONS))
    config = load_config([f"config={tmp_path / 'config.yaml'}", "agent.name=old"])
    check_translated(config)


@pytest.mark.parametrize("policy", ["sim_transfer", "sim_transfer_flow", "sim_transfer_ddim"])
def test_released_policies_load(policy: str) -> None:
    path = REPO_ROOT / "policies" / policy / "config.yaml"
    config = config_from_dict(yaml.safe_load(path.read_text()))
    assert config.agent.noise_samples_per_obs == 4
    assert load_config([f"config={path}"]).agent == config.agent


def test_command_line_gives_one_notice_for_each_name(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def main(config: Config, overrides: list[str]) -> None:
        seen.extend(overrides)
        assert config.evaluate.num_episodes == 3 and config.agent.time_sampler == "endpoint_mix"

    line = ["evaluate.episodes=3", "agent.time_sampler=corner"]
    assert run_command(Command("train", main, examples=()), line) == 0
    assert seen == ["evaluate.num_episodes=3", "agent.time_sampler=endpoint_mix"]
    assert capsys.readouterr().err.splitlines() == [
        "evaluate.episodes is now called evaluate.num_episodes.",
        "agent.time_sampler=corner is now called agent.time_sampler=endpoint_mix.",
    ]


def test_task_files_and_recipes_give_notices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, recipe = tmp_path / "task.yaml", tmp_path / "recipe.yaml"
    task.write_text(yaml.safe_dump(OLD_SECTIONS["task"]))
    recipe.write_text("train.keep_last: 5\ncollect.episodes: 7\n")
    config = load_config([f"task={task}", f"recipe={recipe}", "collect.num_episodes=9"])
    assert config.task.adapter is not None and config.task.adapter.stage_thresholds == [1.0, 2.0]
    assert config.train.keep_last_k == 5 and config.collect.num_episodes == 9
    notices = capsys.readouterr().err
    assert "task.adapter.stages is now called task.adapter.stage_thresholds." in notices
    assert notices.count("train.keep_last is now called") == 1


def test_both_names_are_an_error() -> None:
    with pytest.raises(UserError, match=r"num_episodes is also given .*Remove evaluate\.ep"):
        load_config(["evaluate.episodes=3", "evaluate.num_episodes=4"])
    with pytest.raises(UserError, match=r"keep_last_k is also given .*Remove train\.keep_last\."):
        config_from_dict({"train": {"keep_last": 3, "keep_last_k": 3}})


def test_overrides_are_deduplicated_under_current_names() -> None:
    assert dedupe_overrides(["evaluate.episodes=3", "evaluate.num_episodes=4"]) == [
        "evaluate.num_episodes=4"
    ]
    assert apply_overrides(load_config(), ["evaluate.ema=false"]).evaluate.use_ema_weights is False


def test_names_and_values_inside_search_space_sections() -> None:
    grid = {"agent.time_sampler": ["uniform", "corner"], "train.keep_last": [2, 3]}
    assert rename_options(grid) == {
        "agent.time_sampler": ["uniform", "endpoint_mix"],
        "train.keep_last_k": [2, 3],
    }
    sample = {"train.autocast": {"choice": ["none", "bf16"]}}
    assert rename_options(sample) == {"train.encoder_precision": {"choice": ["fp32", "bf16"]}}
    assert rename_overrides(["train.lr=1", "DIR"]) == ["train.lr=1", "DIR"]


def test_old_values_are_translated_as_they_are_written() -> None:
    notices: list[tuple[str, str]] = []
    renamed = rename_overrides(["train.autocast=none"], lambda *names: notices.append(names))
    assert renamed == ["train.encoder_precision=fp32"]
    assert notices == [("train.autocast=none", renamed[0])]
    assert rename_overrides(['train.autocast="none"']) == ['train.encoder_precision="none"']
