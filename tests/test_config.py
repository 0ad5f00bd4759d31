"""The schema, the command line, and what a user who mistypes is told."""

import pytest

from imf_ray.config import config_from_dict, config_to_dict, load_config, to_yaml
from imf_ray.errors import UserError
from imf_ray.launch import run

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


@pytest.mark.parametrize(
    ("override", "message"),
    [
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
        ("train.keep_last=1", "at least 2"),
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


def test_debug_shows_the_traceback() -> None:
    def main(config, overrides) -> None:
        raise UserError("wrong")

    with pytest.raises(UserError):
        run("imf_ray.train", main, ["debug=true"])
