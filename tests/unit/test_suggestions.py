"""Names that a mistyped one may be meant for."""

from __future__ import annotations

import pytest

from imf_ray.config import GROUPS, group_choices
from imf_ray.schema import COMMANDS, all_options
from imf_ray.suggestions import suggest


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("learning_rate", "train.lr"),
        ("train.learning_rate", "train.lr"),
        ("train.batchsize", "train.batch_size"),
        ("train.bach_size", "train.batch_size"),
        ("n_layers", "agent.head.n_layer"),
        ("epochs", "train.max_steps"),
        ("dataset_dir", "data.dataset_dir"),
        ("storge_path", "storage_path"),
        ("evaluate.videos", "evaluate.video"),
    ],
)
def test_options(word: str, name: str) -> None:
    assert suggest(word, list(all_options())) == f": did you mean {name}?"


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("imf", "resnet_imf_attnres"),
        ("multitoken", "resnet_imf_attnres_multitoken"),
        ("state", "state_imf_attnres"),
        ("transformer", "resnet_transformer"),
        ("ddpm", "resnet_ddpm_attnres"),
    ],
)
def test_agents(word: str, name: str) -> None:
    assert suggest(word, group_choices("agent"), GROUPS["agent"]) == f": did you mean {name}?"


@pytest.mark.parametrize(("word", "name"), [("trian", "train"), ("eval", "evaluate")])
def test_commands(word: str, name: str) -> None:
    assert suggest(word, COMMANDS) == f": did you mean {name}?"
