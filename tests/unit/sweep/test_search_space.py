"""Search spaces: parsing, sampling, and the configurations of their trials."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from imf_ray.errors import UserError
from imf_ray.sweep.schedulers import SCHEDULERS, make_scheduler
from imf_ray.sweep.search_space import SearchSpace, load_search_space, short_names, trial_name


def test_the_grid_of_roboimi_s_study() -> None:
    space = load_search_space("n_emb_n_layer")
    combinations = space.combinations()
    assert [tuple(c.values()) for c in combinations] == [(256, 12), (256, 16), (384, 12), (384, 16)]
    for combination in combinations:
        config = space.config([], combination)
        assert config.agent.name == "resnet_imf_attnres_multitoken"
        assert config.agent.head.n_emb == combination["agent.head.n_emb"]
        assert config.agent.head.n_layer == combination["agent.head.n_layer"]
        assert config.agent.pred_horizon == 16 and config.agent.num_action_steps == 8
        assert config.train.rollout_num_episodes == 10
        assert config.agent.vision_backbone.stage_widths == [64, 128, 256, 512]
        assert config.agent.vision_backbone.use_separate_rgb_encoder_per_camera


def test_the_quickstart_keeps_three_cameras_and_a_residual_trunk() -> None:
    space = load_search_space("quickstart")
    assert len(space.combinations()) == 4
    first = space.combinations()[0]
    config = space.config([], first)
    assert config.agent.camera_names == ["r_vis", "top", "front"]
    assert config.train.rollout_num_episodes >= 5
    assert space.config(["train.max_steps=7"], first).train.max_steps == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("grid: {}", "not a search space"),
        ("grid: {agent.head.n_embb: [1]}", "agent.head.n_embb cannot be varied"),
        ("grid: {agent.head.n_emb: 3}", "needs a list"),
        ("space: {agent.head.n_emb: [3]}", "space is not a key"),
        ("sample: {train.lr: {logunifrom: [1, 2]}}", "needs one of choice, uniform"),
        ("sample: {train.lr: {loguniform: [-1, 2]}}", "cannot be sampled"),
        ("{grid: {train.lr: [1]}, sample: {train.lr: {choice: [1]}}}", "train.lr is varied twice"),
        ("{fixed: {train.lr: 1}, grid: {train.lr: [1, 2]}}", "train.lr is varied, and also"),
        ("{grid: {train.lr: [1]}, num_samples: 2}", "only repeats equal trials"),
        ("{sample: {train.lr: {choice: [1]}}, num_samples: 0}", "must be at least 1"),
        ("{grid: {train.lr: [1]}, scheduler: {pbt: {}}}", "one of asha, median_stopping"),
        (
            "{grid: {train.lr: [1]}, scheduler: {asha: {metric: loss}}}",
            "scheduler asha has the options",
        ),
        (
            "{grid: {train.lr: [1]}, scheduler: {asha: {brackets: 2}}}",
            "scheduler asha has the options",
        ),
    ],
)
def test_invalid_search_spaces_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_search_space(str(path))


def test_random_search_samples_the_same_trials_at_every_call() -> None:
    space = load_search_space("random")
    trials = space.combinations()
    assert len(trials) == 12 and trials == space.combinations()
    assert len({trial["train.lr"] for trial in trials}) == 12
    assert all(1e-4 <= trial["train.lr"] <= 1e-2 for trial in trials)
    assert {trial["train.batch_size"] for trial in trials} <= {32, 64, 128}
    for trial in trials:
        assert space.config([], trial).train.lr == trial["train.lr"]
    other = dataclasses.replace(space, seed=1, grid={"train.seed": [1, 2]}, num_samples=2)
    assert [trial["train.seed"] for trial in other.combinations()] == [1, 1, 2, 2]
    assert other.combinations()[0]["train.lr"] != trials[0]["train.lr"]


@pytest.mark.parametrize("name", ["asha", "median_stopping"])
def test_search_spaces_with_a_scheduler(name: str) -> None:
    space = load_search_space(name)
    config = space.config([], space.combinations()[0])
    assert config.train.rollout_validate_on_checkpoint
    scheduler = make_scheduler(space.scheduler, 6000, {})
    assert type(scheduler._inner) is SCHEDULERS[name]
    assert scheduler._inner.metric == "rollout/success_rate"
    assert make_scheduler({}, 6000, {}) is None
    if name == "asha":
        with pytest.raises(UserError, match=r"asha with .* and 10 training steps is not possible"):
            make_scheduler(space.scheduler, 10, {})


def test_an_unknown_search_space_and_an_override_of_a_varied_option_are_refused() -> None:
    with pytest.raises(UserError, match=r"search_space=quick is unknown.*quickstart"):
        load_search_space("quick")
    with pytest.raises(UserError, match="is varied by the search space"):
        load_search_space("quickstart").config(["agent.head.n_emb=3"], {})


def test_trial_names_use_the_last_part_of_each_option() -> None:
    assert short_names(["agent.head.n_emb", "train.lr"]) == {
        "agent.head.n_emb": "n_emb",
        "train.lr": "lr",
    }
    assert trial_name(3, {"agent.head.n_emb": 64}) == "00003-n_emb_64"


def test_old_names_of_options_are_accepted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A file gets the current names; a sweep of an earlier version keeps its trials' names."""
    path = tmp_path / "old.yaml"
    path.write_text("{fixed: {train.keep_last: 2}, grid: {agent.time_sampler: [corner]}}")
    space = load_search_space(str(path))
    assert space.fixed == {"train.keep_last_k": 2}
    assert space.combinations() == [{"agent.time_sampler": "endpoint_mix"}]

    saved = SearchSpace(
        "saved", fixed={"train.keep_last": 2}, grid={"agent.draws_per_observation": [4]}
    )
    (params,) = saved.combinations()
    assert trial_name(0, params) == "00000-draws_per_observation_4"
    config = saved.config(["train.keep_last=3"], params)
    assert config.agent.noise_samples_per_obs == 4 and config.train.keep_last_k == 3
    with pytest.raises(UserError, match="is varied by the search space"):
        saved.config(["agent.noise_samples_per_obs=1"], params)
    assert "train.keep_last is now called train.keep_last_k" in capsys.readouterr().err


def test_old_and_new_names_of_options_make_the_same_space() -> None:
    old = SearchSpace("a", fixed={"train.autocast": "none"}, grid={"train.keep_last": [2, 3]})
    new = SearchSpace(
        "a", fixed={"train.encoder_precision": "fp32"}, grid={"train.keep_last_k": [2, 3]}
    )
    assert old != new and old.with_current_names() == new == new.with_current_names()
