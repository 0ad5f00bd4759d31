"""The schema, the command line, and what a user who mistypes is told."""

from pathlib import Path

import pytest

from imf_ray.cli import run
from imf_ray.config import config_from_dict, config_to_dict, key_help, load_config, to_yaml
from imf_ray.errors import UserError

SMOKE = (
    "agent=resnet_imf_attnres data.dataset_dir=DIR data.camera_names=[r_vis,top,front] "
    "train.device=cuda train.max_steps=2 train.batch_size=4 train.num_workers=2 "
    "train.use_swanlab=false train.rollout_val_freq_epochs=0"
)
FORMAL = (
    "agent=resnet_imf_attnres data.dataset_dir=DIR data.camera_names=[r_vis,top,front] "
    "train.device=cuda train.val_split=0.0 train.seed=42 train.batch_size=80 train.lr=5e-4 "
    "train.num_workers=12 train.max_steps=150000 train.log_freq=100 train.save_freq=10000 "
    "train.use_swanlab=true train.swanlab_project=roboimi-vla train.rollout_val_freq_epochs=5 "
    "train.rollout_validate_on_checkpoint=false train.rollout_num_episodes=5 "
    "train.warmup_steps=2000 train.scheduler_type=cosine train.min_lr=1e-6 "
    "train.weight_decay=1e-5 train.grad_clip=1.0 agent.pred_horizon=16 agent.inference_steps=1 "
    "agent.head.n_emb=384 agent.head.n_layer=18 agent.head.n_head=1 agent.head.n_kv_head=1 "
    "agent.vision_backbone.pretrained_backbone_weights=null "
    "agent.vision_backbone.freeze_backbone=false "
    "agent.vision_backbone.use_separate_rgb_encoder_per_camera=true"
)


@pytest.mark.parametrize("line", [SMOKE, FORMAL])
def test_roboimi_command_lines_resolve(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main(config, overrides) -> None:
        raise AssertionError("--print-config runs nothing")

    assert run("imf_ray.train", main, [*line.split(), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed == to_yaml(load_config(line.split()))
    assert "name: resnet_imf_attnres\n" in printed


def test_formal_values_arrive() -> None:
    config = load_config(FORMAL.split())
    assert config.agent.head.n_layer == 18 and config.agent.head.n_emb == 384
    assert config.train.lr == 5e-4 and config.train.min_lr == 1e-6
    assert config.agent.vision_backbone.camera_names == ["r_vis", "top", "front"]


def test_cameras_follow_the_data() -> None:
    config = load_config(["data.camera_names=[top]"])
    assert config.agent.camera_names == ["top"]
    assert config.agent.vision_backbone.camera_names == ["top"]


def test_dictionary_round_trip() -> None:
    config = load_config(["agent=resnet_imf_attnres_multitoken", "train.lr=1e-3"])
    assert config_from_dict(config_to_dict(config)) == config


def test_a_task_may_be_a_file_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(
        "env_id: Theirs-v0\nadapter: {cameras: {top: pixels.top}, qpos: [state], stage_thresholds: [1, 2]}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(["task=mine.yaml", "task.adapter.qvel=[speed]"])
    assert config.task.env_id == "Theirs-v0" and config.task.adapter is not None
    assert config.task.adapter.stage_thresholds == [1.0, 2.0] and config.task.adapter.qvel == [
        "speed"
    ]
    assert config.task.env_kwargs(["top"])["adapter"]["cameras"] == {"top": "pixels.top"}
    assert config_from_dict(config_to_dict(config)) == config
    for override, message in (
        ("task.adapter.stage_thresholds=[2,1]", "must increase"),
        ("task.adapter.action_scaling=twice", "choose one of none, box"),
        ("task.adapter.progres=reward", "did you mean task.adapter.progress_signal"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(["task=mine.yaml", override])
    (tmp_path / "mine.yaml").write_text("env_id: Theirs-v0\nadapter: {states: [state]}\n")
    with pytest.raises(UserError, match=r"task\.adapter\.states"):
        load_config(["task=mine.yaml"])


def test_every_option_has_its_default_in_the_help() -> None:
    helped = dict(key_help())
    assert helped["task.adapter.action_scaling"] == "none" and helped["task.control_hz"] == "50"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=nowhere/mine.yaml", "there is no file .*nowhere/mine.yaml"),
        ("task.control_hz=0", "task.control_hz=0 must be at least 1"),
        ("task.adapter.module=theirs", "task.adapter.cameras is empty"),
        ("train.bach_size=4", "did you mean train.batch_size"),
        ("agent=resnet_imf_atnres", "did you mean resnet_imf_attnres"),
        ("train.batch_size=many", "train.batch_size"),
        ("train.batch_size", "key=value"),
        ("train=3", "is a section"),
        ("agent.head.n_head=7", "agent.head.n_emb=384 is not divisible"),
        ("agent.num_action_steps=16", "must lie between 1 and"),
        ("agent.camera_names=[left]", "data.camera_names"),
        ("train.device=tpu", "choose one of cpu, cuda"),
        ("task.action_space=torque", "choose 'joint' or 'ee'"),
        ("train.keep_last_k=1", "at least 2"),
    ],
)
def test_bad_options_are_named(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        load_config([override])

    def main(config, overrides) -> None:
        raise AssertionError("nothing runs")

    assert run("imf_ray.train", main, [override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1


def test_poses_are_taught_to_eyes() -> None:
    with pytest.raises(
        UserError, match=r"aux_pose_objects=\['cube'\].*agent.privileged_pose_objects"
    ):
        load_config(["agent=state_imf_attnres", "agent.aux_pose_objects=[cube]"])


def test_debug_shows_the_traceback() -> None:
    def main(config, overrides) -> None:
        raise UserError("wrong")

    with pytest.raises(UserError):
        run("imf_ray.train", main, ["debug=true"])


def test_a_recipe_stands_for_its_options() -> None:
    recipe = load_config(["recipe=cpu_transfer"])
    assert recipe.agent.vision_backbone.stage_widths == [16, 32, 64, 64]
    own = load_config(["train.max_steps=7", "recipe=cpu_transfer"])
    assert own.train.max_steps == 7 and own.agent == recipe.agent
    with pytest.raises(UserError, match=r"recipe=cpu_transfe is unknown; did you mean cpu_tr"):
        load_config(["recipe=cpu_transfe"])
    with pytest.raises(UserError, match="Two recipes"):
        load_config(["recipe=cpu_transfer", "recipe=gpu_transfer"])
