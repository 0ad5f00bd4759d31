"""Command lines on pages: the parser reads the same options from them."""

from __future__ import annotations

import shlex

import pytest

from imf_ray.cli import split_arguments
from imf_ray.config import load_config
from imf_ray.pages.commands import (
    EVALUATE,
    EXPORT,
    checkpoint_commands,
    compare_command,
    flat_options,
    train_command,
)
from imf_ray.schema import Config, command_options


def parse(command: str, takes_paths: bool = False) -> tuple[list[str], Config]:
    """Return the positional arguments and the configuration of a command line."""
    words = shlex.split(command)
    assert words[0] == "imf-ray"
    positional, overrides = split_arguments(words[2:], takes_paths)
    return positional, load_config(overrides)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["recipe=state_transfer", "agent.head.n_emb=32"],
        ["recipe=cpu_transfer", "cluster=gpu", "cluster.num_workers=2..8"],
        ["recipe=cpu_aloha"],
        ["agent=resnet_ddpm_attnres", "data.camera_names=[top]"],
        ["data.dataset_dir=a folder with 'quotes' and $HOME"],
        # The agent's cameras are the default ones, and would follow those of the data.
        ["data.camera_names=[r_vis,top,front,wrist]", "agent.camera_names=[r_vis,top,front]"],
        ["task=aloha_transfer_cube", "data.camera_names=[top]", "task.adapter.kwargs={a: 'b, c'}"],
        ["train.lr=1e-30", "train.grad_clip=1e3", "storage_path=s3://bucket/runs"],
    ],
)
def test_training_again_has_the_same_options(options: list[str]) -> None:
    config = load_config([*options, "run_name=first"])
    _, again = parse(train_command(config, "it's again"))
    assert again.run_name == "it's again"
    wanted, actual = flat_options(config), flat_options(again)
    names = [key for key in command_options("train") if key != "run_name" and key in wanted]
    assert {key: actual.get(key) for key in names} == {key: wanted[key] for key in names}


def test_training_again_is_short() -> None:
    config = load_config(["recipe=state_transfer", "agent.head.n_emb=96"])
    command = train_command(config, "again")
    assert "agent=state_imf_attnres" in command and "agent.head.n_emb=96" in command
    assert len(command) < 700 and "agent.camera_names" not in command


def test_commands_of_checkpoints() -> None:
    paths = ["/runs/a b/checkpoint_00000100", "s3://bucket/runs/a=b/checkpoint_00000200"]
    commands = checkpoint_commands(paths[0])
    _, config = parse(commands[EVALUATE])
    assert config.checkpoint == paths[0] and config.evaluate.num_episodes == 100
    assert config.evaluate.seed != config.train.rollout_seed  # episodes that selected nothing
    positional, config = parse(commands[EXPORT], takes_paths=True)
    assert config.checkpoint == paths[0] and len(positional) == 1
    assert parse(compare_command(paths), takes_paths=True)[0] == paths


def test_secrets_are_left_out() -> None:
    config = load_config(["data.dataset_dir=https://user:s3cr3t@host/demos?token=s3cr3t"])
    assert "s3cr3t" not in train_command(config, "again")
    assert "s3cr3t" not in str(checkpoint_commands("s3://key:s3cr3t@bucket/checkpoint_00000100"))
