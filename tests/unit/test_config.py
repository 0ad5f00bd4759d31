"""Composing configurations, and the errors for wrong options."""

from pathlib import Path

import pytest

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.config import (
    apply_overrides,
    config_from_dict,
    config_to_dict,
    default_overrides,
    load_config,
    to_yaml,
)
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
"""RoboIMI's two documented command lines."""


def not_run(config, overrides) -> None:
    raise AssertionError("the command must not run")


@pytest.mark.parametrize("line", [SMOKE, FORMAL])
def test_roboimi_command_lines_resolve(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command("train", not_run, examples=())
    assert run_command(command, [*line.split(), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed == to_yaml(load_config(line.split()))
    assert "name: resnet_imf_attnres\n" in printed


def test_values_of_a_command_line_are_in_the_configuration() -> None:
    config = load_config(FORMAL.split())
    assert config.agent.head.n_layer == 18 and config.agent.head.n_emb == 384
    assert config.train.lr == 5e-4 and config.train.min_lr == 1e-6
    assert config.agent.vision_backbone.camera_names == ["r_vis", "top", "front"]


def test_agent_cameras_default_to_data_cameras() -> None:
    config = load_config(["data.camera_names=[top]"])
    assert config.agent.camera_names == ["top"]
    assert config.agent.vision_backbone.camera_names == ["top"]


def test_dictionary_round_trip() -> None:
    config = load_config(["agent=resnet_imf_attnres_multitoken", "train.lr=1e-3"])
    assert config_from_dict(config_to_dict(config)) == config


def test_overrides_of_a_configuration_leave_the_original_unchanged() -> None:
    config = load_config(["train.lr=1e-3"])
    changed = apply_overrides(config, ["train.lr=2e-3", "agent.aux_pose_objects=[cube]"])
    assert changed.train.lr == 2e-3 and changed.agent.aux_pose_objects == ["cube"]
    assert config.train.lr == 1e-3 and config.agent.aux_pose_objects == []


def test_task_may_be_a_yaml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(
        "env_id: Theirs-v0\n"
        "adapter: {cameras: {top: pixels.top}, qpos: [state], stage_thresholds: [1, 2]}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(["task=mine.yaml", "task.adapter.qvel=[speed]"])
    assert config.task.env_id == "Theirs-v0" and config.task.adapter is not None
    assert config.task.adapter.stage_thresholds == [1.0, 2.0]
    assert config.task.adapter.qvel == ["speed"]
    assert config.task.env_kwargs(["top"])["adapter"]["cameras"] == {"top": "pixels.top"}
    assert config_from_dict(config_to_dict(config)) == config
    for override, message in (
        ("task.adapter.stage_thresholds=[2,1]", "must increase"),
        ("task.adapter.action_scaling=twice", "choose one of none, box"),
        ("task.adapter.progress_signa=reward", "did you mean task.adapter.progress_signal"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(["task=mine.yaml", override])
    (tmp_path / "mine.yaml").write_text("env_id: Theirs-v0\nadapter: {states: [state]}\n")
    with pytest.raises(UserError, match=r"task=mine\.yaml: .*task\.adapter\.states"):
        load_config(["task=mine.yaml"])
    (tmp_path / "mine.yaml").write_text("env_id: [")
    with pytest.raises(UserError, match=r"task=mine\.yaml: .* line 1"):
        load_config(["task=mine.yaml"])


def test_defaults_for_the_help_include_optional_sections() -> None:
    defaults = default_overrides()
    assert defaults["task.adapter.action_scaling"] == "task.adapter.action_scaling=none"
    assert defaults["task.control_hz"] == "task.control_hz=50"
    assert defaults["cluster.address"] == "cluster.address=null"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=nowhere/mine.yaml", "there is no file .*nowhere/mine.yaml"),
        ("task.control_hz=0", "task.control_hz=0 must be at least 1"),
        ("task.adapter.module=theirs", "task.adapter.cameras is empty"),
        ("train.bach_size=4", "did you mean train.batch_size"),
        ("agent=resnet_imf_atnres", "did you mean resnet_imf_attnres"),
        ("train.batch_size=many", "train.batch_size"),
        ("train.batch_size=[1", "not valid YAML"),
        ("train.batch_size", "key=value"),
        ("train=3", "is a section. Set one of its options instead, such as train.device"),
        ("agent.head.n_head=7", "agent.head.n_emb=384 is not divisible"),
        ("agent.num_action_steps=16", "must lie between 1 and"),
        ("agent.camera_names=[left]", "data.camera_names"),
        ("train.device=tpu", "choose one of cpu, cuda"),
        ("task.action_space=torque", "choose one of joint, ee"),
        ("train.keep_last_k=1", "at least 2"),
        ("train.betas=[0.9]", "two numbers"),
        ("config=nowhere.yaml", "there is no file .*nowhere.yaml"),
    ],
)
def test_errors_name_the_option(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        load_config([override])
    assert run_command(Command("train", not_run, examples=()), [override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1


def test_auxiliary_poses_need_cameras() -> None:
    with pytest.raises(
        UserError, match=r"aux_pose_objects=\['cube'\].*agent.privileged_pose_objects"
    ):
        load_config(["agent=state_imf_attnres", "agent.aux_pose_objects=[cube]"])


def test_debug_shows_the_traceback() -> None:
    def main(config, overrides) -> None:
        raise UserError("wrong")

    with pytest.raises(UserError):
        run_command(Command("train", main, examples=()), ["debug=true"])


def test_recipe_stands_for_its_options() -> None:
    recipe = load_config(["recipe=cpu_transfer"])
    assert recipe.agent.vision_backbone.stage_widths == [16, 32, 64, 64]
    changed = load_config(["train.max_steps=7", "recipe=cpu_transfer"])
    assert changed.train.max_steps == 7 and changed.agent == recipe.agent
    with pytest.raises(UserError, match=r"recipe=cpu_transfe is unknown: did you mean cpu_tr"):
        load_config(["recipe=cpu_transfe"])
    with pytest.raises(UserError, match="Two recipes"):
        load_config(["recipe=cpu_transfer", "recipe=gpu_transfer"])


class TestConfigFile:
    """`config=FILE.yaml`: a saved configuration as the base."""

    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        options = ["recipe=cpu_transfer", "run_name=first", "cluster.num_workers=2..4"]
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(load_config(options)))
        return path

    def test_is_the_base_and_overrides_win(self, saved: Path) -> None:
        base = load_config(["recipe=cpu_transfer", "cluster.num_workers=2..4"])
        assert load_config([f"config={saved}"]) == base
        changed = load_config(["train.lr=2e-3", f"config={saved}"])
        assert changed.train.lr == 2e-3 and changed.agent == base.agent

    def test_does_not_name_the_saved_run(self, saved: Path) -> None:
        assert load_config([f"config={saved}"]).run_name is None
        assert load_config([f"config={saved}", "run_name=second"]).run_name == "second"

    def test_cameras_still_follow_the_data(self, saved: Path) -> None:
        config = load_config([f"config={saved}", "data.camera_names=[top]"])
        assert config.agent.vision_backbone.camera_names == ["top"]

    def test_a_group_replaces_its_section(self, saved: Path) -> None:
        config = load_config([f"config={saved}", "agent=state_imf_attnres", "cluster=gpu"])
        assert config.agent == load_config(["agent=state_imf_attnres"]).agent
        assert config.cluster.address == "auto" and config.cluster.min_workers is None
        assert config.train == load_config(["recipe=cpu_transfer"]).train

    def test_of_a_policy_alone(self, tmp_path: Path) -> None:
        policy = config_to_dict(load_config(["agent=resnet_flow_attnres", "task.image_size=48"]))
        path = tmp_path / "config.yaml"
        sections = {key: policy[key] for key in ("agent", "data", "task")}
        path.write_text(to_yaml(config_from_dict(sections)))
        config = load_config([f"config={path}"])
        assert config.agent.objective == "flow" and config.task.image_size == 48
        assert config.cluster == load_config().cluster

    @pytest.mark.parametrize(
        ("options", "content", "message"),
        [
            (["recipe=cpu_transfer"], "train: {lr: 1}", r"config=.* and recipe=cpu_transfer"),
            (["config=other.yaml"], "train: {lr: 1}", "Two configurations"),
            ([], "train: {lrr: 1}", r"config\.yaml: .*train\.lrr"),
            ([], "train: {batch_size: many}", r"config\.yaml: train\.batch_size"),
            ([], "train: {batch_size: 0}", r"train\.batch_size=0 must be .*config\.yaml"),
            ([], "[1, 2]", r"config\.yaml is not a mapping"),
            ([], "train: {keep_last: 3, keep_last_k: 4}", r"train\.keep_last_k.*old name"),
        ],
    )
    def test_errors_name_file_and_key(
        self, options: list[str], content: str, message: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "config.yaml"
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            load_config([f"config={path}", *options])
