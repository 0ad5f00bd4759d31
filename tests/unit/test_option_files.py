"""An error of an option names the YAML file that it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.sweep.search_space import load_search_space

FILES = {
    "no_env.yaml": "image_size: 32\n",
    "no_rate.yml": "env_id: SimTransfer\ncontrol_hz: 0\n",
    "adapted.yaml": "env_id: SimTransfer\nadapter: {env_class: 'a:B'}\n",
    "recipe.yaml": "train.batch_size: 0\n",
    "nested.yaml": "task: no_env.yaml\ntrain: {max_steps: 3}\n",
    "cpu_transfer_mine.yaml": "train.max_steps: 3\n",
    "steps.yaml": "train.gradient_accumulation_steps: 3\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with YAML files."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def error(*overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        load_config(overrides)
    return str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "option", "source"),
    [
        (["task=no_env.yaml"], "task.env_id", "task=no_env.yaml"),
        (["task=no_rate.yml"], "task.control_hz=0", "task=no_rate.yml"),
        (["task=adapted.yaml"], "task.adapter.cameras", "task=adapted.yaml"),
        (["recipe=recipe.yaml"], "train.batch_size=0", "recipe=recipe.yaml"),
        (["recipe=nested.yaml"], "task.env_id", "task=no_env.yaml"),
        (
            ["recipe=steps.yaml", "train.batch_size=8"],
            "train.gradient_accumulation_steps=3",
            "recipe=steps.yaml",
        ),
    ],
)
def test_the_file_of_a_refused_value_is_named(
    overrides: list[str], option: str, source: str
) -> None:
    message = error(*overrides)
    assert option in message and message.endswith(f"comes from {source}.")


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=no_rate.yml", "task.control_hz=-1"],
        ["recipe=recipe.yaml", "train.batch_size=-1"],
        ["recipe=nested.yaml", "task=sim_transfer", "train.max_steps=-1"],
        ["train.batch_size=0"],
    ],
)
def test_no_file_is_named_for_a_value_of_the_command_line(overrides: list[str]) -> None:
    assert "comes from" not in error(*overrides)


@pytest.mark.parametrize(
    ("choice", "remedy"),
    [
        ("task=no_env", "task=no_env.yaml"),
        ("task=no_rate", "task=no_rate.yml"),
        ("task=./no_rate", "task=./no_rate.yml"),
        ("recipe=cpu_transfer_mine", "recipe=cpu_transfer_mine.yaml"),
        ("task=sim_transfer.yaml", "task=sim_transfer"),
        ("task=conf/Sim_Transfer.yml", "task=sim_transfer"),
        ("recipe=cpu_transfer.yaml", "recipe=cpu_transfer"),
        ("agent=~/resnet_imf_attnres.yaml", "agent=resnet_imf_attnres"),
    ],
)
def test_the_name_that_works_is_given(choice: str, remedy: str) -> None:
    message = error(choice)
    assert choice in message and message.endswith(f"use {remedy}")


@pytest.mark.parametrize(
    ("content", "section", "value"),
    [
        ("sample: {train.batch_size: {uniform: [8, 64]}}", "sample", "train.batch_size"),
        ("sample: {train.batch_size: {quniform: [8, 64, 8]}}", "sample", "randint"),
        ("sample: {data.virtual_shards: {loguniform: [1, 9]}}", "sample", "randint"),
        ("sample: {agent.objective: {uniform: [0, 1]}}", "sample", "Use choice"),
        ("sample: {train.batch_size: {randint: [-8, 0]}}", "sample", "train.batch_size=-"),
        ("sample: {train.lr: {uniform: [-2, -1]}}", "sample", "train.lr=-"),
        ("sample: {train.lr: {choice: [0.1, 0]}}", "sample", "train.lr=0"),
        ("grid: {agent.head.n_emb: [64, 0]}", "grid", "agent.head.n_emb=0"),
        ("grid: {agent.objective: [imf, flo]}", "grid", "agent.objective='flo'"),
        ("{fixed: {train.lr: 0}, grid: {train.seed: [1]}}", "fixed", "train.lr=0"),
    ],
)
def test_a_value_of_a_search_space_is_refused_when_it_is_read(
    content: str, section: str, value: str, folder: Path
) -> None:
    path = folder / "space.yaml"
    path.write_text(f"{content}\n")
    if "choice" in content:
        path.write_text(f"{content}\nnum_samples: 9\n")
    with pytest.raises(UserError) as raised:
        load_search_space("space.yaml")
    message = str(raised.value)
    assert str(path) in message and f"{section}: " in message and value in message


@pytest.mark.parametrize(
    "content",
    [
        "sample: {train.batch_size: {randint: [8, 64]}}",
        "sample: {train.batch_size: {lograndint: [8, 64]}}",
        "sample: {train.batch_size: {choice: [8, 64]}}",
        "sample: {train.lr: {randint: [1, 3]}}",
        "sample: {train.compile: {choice: [true, false]}}",
        "sample: {train.lr: {quniform: [0.1, 0.3, 0.1]}}",
    ],
)
def test_fitting_distributions_are_accepted(content: str, folder: Path) -> None:
    (folder / "space.yaml").write_text(content)
    space = load_search_space("space.yaml")
    space.config([], space.combinations()[0])


@pytest.mark.parametrize(
    ("content", "section"),
    [
        ("grid: {agent.vision_backbone.crop_size: [512]}", "grid"),
        ("sample: {agent.vision_backbone.crop_size: {randint: [512, 520]}}", "sample"),
        (
            "{fixed: {agent.vision_backbone.crop_size: 512}, grid: {train.seed: [1]}}",
            "fixed",
        ),
    ],
)
def test_an_impossible_combination_names_the_search_space(
    content: str, section: str, folder: Path
) -> None:
    (folder / "mine.yaml").write_text(content)
    space = load_search_space("mine.yaml")
    with pytest.raises(UserError, match=f"`{section}:` in the search space mine"):
        space.config([], space.combinations()[0])
    if section == "fixed":
        with pytest.raises(UserError) as raised:
            space.config(["agent.vision_backbone.crop_size=600"], {"train.seed": 1})
        assert "comes from" not in str(raised.value)
