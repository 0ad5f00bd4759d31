"""Rules that options carry: bounds, choices, and who may change them when."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from imf_ray.agents.registry import OBJECTIVES
from imf_ray.config import load_config
from imf_ray.data.readers import FORMATS
from imf_ray.errors import UserError
from imf_ray.schema import (
    COMMANDS,
    Config,
    all_options,
    command_options,
    is_sweepable,
    resumable_options,
)
from imf_ray.schema.options import check_options, option

RESUMABLE_SECTIONS = {
    "board",
    "cluster",
    "collect",
    "compare",
    "convert",
    "evaluate",
    "report",
    "tune",
}
RESUMABLE_TRAIN = {
    "board",
    "diagnostics_freq",
    "gradient_accumulation_steps",
    "keep_last_k",
    "log_freq",
    "log_sample_ids",
    "max_failures",
    "num_workers",
    "rollout_video",
    "save_freq",
    "swanlab_mode",
    "swanlab_project",
    "tensorboard",
    "use_swanlab",
}
FIXED_EVALUATE = {
    "inference_batch_size",
    "inference_steps",
    "num_action_steps",
    "stop_on_success",
    "use_ema_weights",
}
"""Options of `evaluate` on which the records of a validation depend."""
TOP_LEVEL = {key for key in all_options() if "." not in key}


def test_every_option_has_help_and_known_commands() -> None:
    for key, rules in all_options().items():
        assert rules.help.endswith("."), key
        assert rules.commands and set(rules.commands) <= set(COMMANDS), key


def test_defaults_satisfy_their_own_rules() -> None:
    for key, rules in all_options().items():
        if rules.default is not None:
            assert rules._bound_problem(rules.default) is None, key
            assert not rules.choices or rules.default in rules.choice_names(), key


def test_resumable_options() -> None:
    expected = {
        key
        for key in all_options()
        if key in (*TOP_LEVEL, "data.dataset_dir", "train.init_from")
        or key.partition(".")[0] in RESUMABLE_SECTIONS
        or key.removeprefix("train.") in RESUMABLE_TRAIN
    } - {f"evaluate.{key}" for key in FIXED_EVALUATE}
    assert resumable_options() == expected


def test_trials_of_a_sweep_share_task_cluster_and_evaluation() -> None:
    shared = tuple(f"{section}." for section in (*RESUMABLE_SECTIONS, "task"))
    shared += ("train.board", "train.device", "train.rollout_", "data.dataset_dir")
    for key in all_options():
        assert is_sweepable(key) == (not key.startswith(shared) and key not in TOP_LEVEL), key


def test_evaluation_commands_leave_the_policy_to_the_checkpoint() -> None:
    one_policy = {
        f"evaluate.{key}"
        for key in (
            "checkpoint_selection",
            "max_video_episodes",
            "output_dir",
            "selection_episodes",
            "selection_seed",
            "video",
        )
    }
    common = {"data.camera_names", "data.format", "storage_path", "debug"}
    common |= {"report.max_video_mb", "report.max_total_mb"}
    common |= {
        key for key in all_options() if key.startswith(("evaluate.", "cluster.", "task."))
    } - one_policy
    comparison = {"compare.baselines", "compare.output_dir"}
    own = {"checkpoint", "data.dataset_dir"}
    assert set(command_options("evaluate")) == common | one_policy | own
    assert set(command_options("compare")) == common | comparison


def test_an_episode_format_is_registered_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_options()["data.format"].choice_names() == ("auto", *FORMATS)
    monkeypatch.setitem(FORMATS, "zarr", FORMATS["act"])
    assert load_config(["data.format=zarr"]).data.format == "zarr"
    with pytest.raises(UserError, match=r"choose one of auto, .*zarr"):
        load_config(["data.format=tar"])


def test_an_objective_is_registered_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_options()["agent.objective"].choice_names() == tuple(OBJECTIVES)
    monkeypatch.setitem(OBJECTIVES, "consistency", OBJECTIVES["flow"])
    assert load_config(["agent.objective=consistency"]).agent.objective == "consistency"
    with pytest.raises(UserError, match=r"choose one of imf, .*consistency"):
        load_config(["agent.objective=gan"])


@dataclass
class Example:
    """A section with every kind of rule."""

    count: int = option(2, "Number.", min=2, reason="one is lost")
    share: float = option(0.5, "Fraction.", min=0.0, below=1.0)
    rate: float = option(1.0, "Rate.", above=0.0)
    mode: str | None = option(None, "Mode.", choices=("slow", "fast"))
    names: list[str] = option(["a"], "Names.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1}, r"example\.count=1 must be at least 2: one is lost\."),
        ({"share": 1.0}, r"example\.share=1\.0 must lie in \[0, 1\)\."),
        ({"rate": 0.0}, r"example\.rate=0\.0 must be positive\."),
        ({"mode": "odd"}, r"example\.mode='odd' is unknown; choose one of slow, fast\."),
    ],
)
def test_broken_rules_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_options("example", Example(**values))  # type: ignore[arg-type]


def test_sections_do_not_share_their_lists() -> None:
    Example().names.append("b")
    assert Example().names == ["a"]
    check_options("example", Example(mode="fast"))


def test_options_follow_the_order_of_the_schema() -> None:
    sections = list(dict.fromkeys(key.partition(".")[0] for key in all_options()))
    assert sections == list(Config.__dataclass_fields__)
