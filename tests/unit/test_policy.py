"""`load_policy`: actions of a released policy, reproducible noise, and errors that name the key."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from upath import UPath

from imf_ray.agents.pretrained import load_agent, make_agent
from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.images import center_crop_resize
from imf_ray.policy import LoadedPolicy, load_policy
from tests.helpers import REPO_ROOT

PATH = REPO_ROOT / "policies" / "sim_transfer"


@pytest.fixture(scope="module")
def policy() -> LoadedPolicy:
    return load_policy(PATH)


def observation(policy: LoadedPolicy, step: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    shape = (policy.image_size, policy.image_size, 3)
    return {
        "images": {name: rng.integers(0, 256, shape, np.uint8) for name in policy.camera_names},
        "qpos": rng.normal(size=policy.state_dim),
    }


def episode(policy: LoadedPolicy, steps: int, seed: int = 0) -> np.ndarray:
    policy.reset(seed)
    return np.stack([policy.act(observation(policy, step)) for step in range(steps)])


def test_attributes_describe_inputs_and_outputs(policy: LoadedPolicy) -> None:
    assert policy.camera_names == ("r_vis", "top", "front")
    assert (policy.image_size, policy.state_dim, policy.action_dim) == (96, 16, 16)
    assert (policy.action_space, policy.num_action_steps, policy.control_hz) == ("joint", 8, 50)
    assert policy.privileged_pose_objects == ()


def test_actions_are_those_of_the_agent(policy: LoadedPolicy) -> None:
    actions = episode(policy, 10)
    assert actions.shape == (10, 16) and actions.dtype == np.float32
    agent, _ = load_agent(PATH)
    generator = torch.Generator().manual_seed(0)
    for step in range(10):
        obs = observation(policy, step)
        batch = {
            "images": {
                name: torch.from_numpy(image)[None] for name, image in obs["images"].items()
            },
            "qpos": torch.from_numpy(obs["qpos"])[None].float(),
        }
        expected = agent.select_action(batch, generator=generator)[0]
        np.testing.assert_array_equal(actions[step], expected)


def test_the_snippet_of_the_guide_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO_ROOT)
    text = (REPO_ROOT / "docs" / "policy.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    variables: dict[str, Any] = {}
    exec(snippet, variables)
    assert variables["action"].shape == (16,) and variables["action"].dtype == np.float32


def test_the_seed_determines_the_noise(policy: LoadedPolicy) -> None:
    first = episode(policy, 9)
    np.testing.assert_array_equal(episode(policy, 9), first)
    np.testing.assert_array_equal(episode(load_policy(PATH), 9), first)
    assert not np.array_equal(episode(policy, 9, seed=1), first)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(episode(policy, 9), first)
    finally:
        torch.set_default_dtype(torch.float32)


def test_tensors_are_accepted_and_images_only_needed_for_predictions(policy: LoadedPolicy) -> None:
    expected = episode(policy, 9)
    policy.reset(seed=0)
    rendered = []
    for step in range(9):
        obs = observation(policy, step)
        obs["qpos"] = torch.from_numpy(obs["qpos"])
        if policy.needs_images:
            rendered.append(step)
            obs["images"] = {name: torch.from_numpy(i) for name, i in obs["images"].items()}
        else:
            del obs["images"]
        np.testing.assert_array_equal(policy.act(obs), expected[step])
    assert rendered == [0, 7, 8]


def as_given(value: Any, form: str) -> Any:
    """Return an array in one of the forms in which robot scripts have it."""
    if form == "tensor":
        return torch.from_numpy(value.copy())
    if form == "tensor with gradient" and value.dtype != np.uint8:
        return torch.from_numpy(value).requires_grad_()
    if form == "lists":
        return value.tolist()
    if form == "PIL" and value.ndim == 3:
        return Image.fromarray(value)
    if form == "read-only":
        value = value.copy()
        value.flags.writeable = False
    if form == "strided":
        value = np.ascontiguousarray(value[..., ::-1])[..., ::-1]
    if form == "tensor, strided":
        return torch.from_numpy(np.repeat(value, 2, axis=0))[::2]
    return value


FORMS = ["tensor", "tensor with gradient", "lists", "PIL", "read-only", "strided"]


@pytest.mark.parametrize("form", [*FORMS, "tensor, strided"])
def test_every_form_of_an_observation_gives_the_same_action(
    policy: LoadedPolicy, form: str
) -> None:
    obs = observation(policy)
    policy.reset(seed=0)
    expected = policy.act(obs)
    given = {
        "images": {name: as_given(image, form) for name, image in obs["images"].items()},
        "qpos": as_given(obs["qpos"], form),
    }
    policy.reset(seed=0)
    np.testing.assert_array_equal(policy.act(given), expected)


def test_integer_states_and_unused_inputs_are_accepted(policy: LoadedPolicy) -> None:
    obs = observation(policy)
    policy.reset(seed=0)
    expected = policy.act(obs | {"qpos": np.ones(16)})
    policy.reset(seed=0)
    more = {"qpos": np.ones(16, dtype=np.int64), "qvel": None, "task": "pick the cube"}
    images = obs["images"] | {"wrist": np.zeros((3, 3))}
    np.testing.assert_array_equal(policy.act({"images": images, **more}), expected)


def test_a_batch_of_robots(policy: LoadedPolicy) -> None:
    rows = [observation(policy, step) for step in range(3)]
    batch: dict[str, Any] = {
        "images": {name: np.stack([r["images"][name] for r in rows]) for name in rows[0]["images"]},
        "qpos": np.stack([r["qpos"] for r in rows]),
    }
    policy.reset(seed=0)
    actions = policy.act(batch)
    assert actions.shape == (3, 16)
    with pytest.raises(ValueError, match=r"\(2, 16\).*\(3, 16\).*reset"):
        policy.act({"qpos": batch["qpos"][:2]})
    with pytest.raises(ValueError, match=r"\(1, 16\).*\(3, 16\).*reset"):
        policy.act({"qpos": batch["qpos"][0]})
    assert policy.act({"qpos": batch["qpos"]}).shape == (3, 16)  # the episode goes on
    # A robot's action does not depend on the other robots.
    policy.reset(seed=0)
    others = {"images": {k: v.copy() for k, v in batch["images"].items()}, "qpos": batch["qpos"]}
    for image in others["images"].values():
        image[1:] = 0
    np.testing.assert_allclose(policy.act(others)[0], actions[0], atol=1e-5)
    policy.reset(seed=0)
    first = {"images": {k: v[:1] for k, v in batch["images"].items()}, "qpos": batch["qpos"][:1]}
    assert policy.act(first).shape == (1, 16)
    policy.reset(seed=0)
    with pytest.raises(ValueError, match=r"'top'\] has shape \(2, .* 3 rows"):
        images = batch["images"] | {"top": batch["images"]["top"][:2]}
        policy.act({"images": images, "qpos": batch["qpos"]})


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (320, 240), (48, 48), (97, 96)])
def test_images_of_another_size_are_resized_as_in_training(
    policy: LoadedPolicy, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    large = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name in policy.camera_names}
    resized = {name: center_crop_resize(image[None], 96)[0] for name, image in large.items()}
    qpos = rng.normal(size=16)
    policy.reset(seed=0)
    expected = policy.act({"images": resized, "qpos": qpos})
    policy.reset(seed=0)
    np.testing.assert_array_equal(policy.act({"images": large, "qpos": qpos}), expected)
    assert f"{size[0]} x {size[1]}" in caplog.text
    policy.reset(seed=0)
    batch = {name: np.stack([image, image]) for name, image in large.items()}
    actions = policy.act({"images": batch, "qpos": np.stack([qpos, qpos])})
    assert actions.shape == (2, 16)
    caplog.clear()
    policy.reset()
    policy.act({"images": large, "qpos": qpos})
    assert not caplog.text  # once is enough


def wrong(obs: dict[str, Any], case: str) -> Any:
    """Return an observation with one mistake."""
    qpos, images = obs["qpos"], obs["images"]
    top = images["top"]
    nan, inf = qpos.copy(), qpos.copy()
    nan[3], inf[5] = np.nan, -np.inf
    states = {
        "14 numbers": np.zeros(14),
        "nan": nan,
        "inf": inf,
        "too large": np.full(16, 1e39),
        "ragged": [0.0, [1.0, 2.0]],
        "text": ["a"] * 16,
        "none": None,
        "bool": np.ones(16, bool),
        "3 axes": np.zeros((1, 1, 16)),
        "scalar": 0.5,
        "empty batch": np.zeros((0, 16)),
        "batched": qpos[None],
    }
    pictures = {
        "channel-first": top.transpose(2, 0, 1),
        "channel-first tensor": torch.from_numpy(top).permute(2, 0, 1),
        "ambiguous": np.zeros((3, 96, 3), np.uint8),
        "RGBA": np.zeros((96, 96, 4), np.uint8),
        "gray": np.zeros((96, 96), np.uint8),
        "one channel": np.zeros((96, 96, 1), np.uint8),
        "float": top / 255,
        "float32 tensor": torch.from_numpy(top).float(),
        "uint16": top.astype(np.uint16),
        "int64": top.astype(np.int64),
        "bool image": top > 3,
        "image batch": top[None],
        "no pixels": np.zeros((0, 96, 3), np.uint8),
        "PIL RGBA": Image.fromarray(np.zeros((96, 96, 4), np.uint8)),
        "PIL HSV": Image.fromarray(top).convert("HSV"),
        "PIL gray": Image.fromarray(np.zeros((96, 96), np.uint8)),
        "path": "top.png",
        "large numbers": [[[300, 0, 0]] * 96] * 96,
    }
    if case in states:
        return obs | {"qpos": states[case]}
    if case in pictures:
        return obs | {"images": images | {"top": pictures[case]}}
    return {
        "one array": obs | {"images": top},
        "no images": {"qpos": qpos},
        "no qpos": {"images": images},
        "misspelt": {"image": images, "state": qpos},
        "flat": {"observation.images.top": top, "observation.state": qpos},
        "missing camera": obs | {"images": {"top": top, "Front": top, "r_vis": top}},
        "tuple": (obs, {}),
        "array": qpos,
    }[case]


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("14 numbers", ["'qpos'", "(14,)", "(16,)"]),
        ("nan", ["'qpos'", "nan", "index 3"]),
        ("inf", ["'qpos'", "inf", "index 5"]),
        ("too large", ["'qpos'", "index 0"]),
        ("ragged", ["'qpos'"]),
        ("text", ["'qpos'"]),
        ("none", ["'qpos'", "NoneType"]),
        ("bool", ["'qpos'", "bool"]),
        ("3 axes", ["'qpos'", "(1, 1, 16)", "(16,)"]),
        ("scalar", ["'qpos'", "()", "(16,)"]),
        ("empty batch", ["'qpos'", "(0, 16)"]),
        ("batched", ["'r_vis'", "(96, 96, 3)", "(B, H, W, 3)", "batch axis"]),
        ("channel-first", ["'top'", "(3, 96, 96)", "color axis comes first"]),
        ("channel-first tensor", ["'top'", "(3, 96, 96)", "color axis comes first"]),
        ("ambiguous", ["'top'", "(3, 96, 3)"]),
        ("RGBA", ["'top'", "(96, 96, 4)", "alpha"]),
        ("gray", ["'top'", "(96, 96)", "color"]),
        ("one channel", ["'top'", "(96, 96, 1)", "gray"]),
        ("float", ["'top'", "float64", "uint8"]),
        ("float32 tensor", ["'top'", "float32", "uint8"]),
        ("uint16", ["'top'", "uint16", "uint8"]),
        ("int64", ["'top'", "int64", "uint8"]),
        ("bool image", ["'top'", "bool"]),
        ("image batch", ["'top'", "(1, 96, 96, 3)", "batch axis"]),
        ("no pixels", ["'top'", "(0, 96, 3)"]),
        ("PIL RGBA", ["'top'", "RGBA", "convert"]),
        ("PIL HSV", ["'top'", "HSV", "convert"]),
        ("PIL gray", ["'top'", "mode L", "convert"]),
        ("path", ["'top'", "str"]),
        ("large numbers", ["'top'", "255"]),
        ("one array", ["'images'", "ndarray", "'top'"]),
        ("no images", ["images", "given: qpos", "r_vis, top, front"]),
        ("no qpos", ["qpos", "given: images", "(16,)"]),
        ("misspelt", ["qpos", "images", "given: image, state"]),
        ("flat", ["qpos", "images", "observation.images.top", "observation.state"]),
        ("missing camera", ["'front'", "given: top, Front, r_vis"]),
        ("tuple", ["tuple", "gymnasium"]),
        ("array", ["ndarray"]),
    ],
)
def test_wrong_observations_are_named_and_not_used(
    policy: LoadedPolicy, case: str, named: list[str]
) -> None:
    obs = observation(policy)
    policy.reset(seed=0)
    expected = policy.act(obs)
    policy.reset(seed=0)
    with pytest.raises(ValueError) as error:
        policy.act(wrong(obs, case))
    assert all(text in str(error.value) for text in named), error.value
    np.testing.assert_array_equal(policy.act(obs), expected)


@pytest.fixture
def state_policy() -> LoadedPolicy:
    """A small policy with privileged object poses and without cameras."""
    options = ["agent.head.n_emb=8", "agent.head.n_layer=1", "agent.head.n_head=1"]
    config = load_config(["agent=state_imf_attnres", *options])
    config.agent.privileged_pose_objects = ["cube", "table"]
    return LoadedPolicy(make_agent(config.agent, "joint").eval(), config)


def test_object_poses_are_read_by_name(state_policy: LoadedPolicy) -> None:
    pose = [0.0, 0.0, 0.0, 1, 0, 0, 0]
    obs = {"qpos": np.zeros(16), "object_poses": {"table": pose, "cube": pose, "other": None}}
    assert not state_policy.needs_images
    assert state_policy.act(obs).shape == (16,)
    rows = {name: [pose, pose] for name in ("cube", "table")}
    state_policy.reset()
    assert state_policy.act({"qpos": np.zeros((2, 16)), "object_poses": rows}).shape == (2, 16)
    state_policy.reset()
    for poses, named in (
        (None, "NoneType"),
        ({"cube": pose}, "'table'"),
        ({"cube": pose[:3], "table": pose}, r"'cube'\] has shape \(3,\).*\(7,\)"),
        ({"cube": [pose, pose], "table": pose}, r"'cube'\] has shape \(2, 7\).*\(7,\)"),
        ({"cube": [np.nan, *pose[1:]], "table": pose}, r"'cube'\] is nan at index 0"),
    ):
        with pytest.raises(ValueError, match=named):
            state_policy.act(obs | {"object_poses": poses})
    with pytest.raises(ValueError, match=r"lacks object_poses .*cube, table"):
        state_policy.act({"qpos": np.zeros(16)})


def test_actions_that_are_not_finite_are_refused(policy: LoadedPolicy) -> None:
    policy.reset(seed=0)
    with pytest.raises(ValueError, match="not finite"):
        policy.act(observation(policy) | {"qpos": np.full(16, 3e38)})


@pytest.mark.parametrize("seed", [0.5, "0", 2**80])
def test_seeds_are_integers(policy: LoadedPolicy, seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        policy.reset(seed)
    policy.reset(np.int64(3))


def test_paths_are_text_or_path_absolute_or_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PATH, tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/mine", Path("~/mine"), str(tmp_path / "mine") + "/", tmp_path / "mine"):
        assert load_policy(path).image_size == 96
        assert load_agent(path)[0].image_size == 96
    monkeypatch.chdir(tmp_path)
    assert load_policy("mine").image_size == 96
    assert load_policy("policies/sim_transfer").image_size == 96


def test_a_url_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = UPath("memory://robots/policy")
    url.mkdir(parents=True)
    for file in PATH.iterdir():
        (url / file.name).write_bytes(file.read_bytes())
    assert load_policy("memory://robots/policy").image_size == 96
    assert load_agent("memory://robots/policy")[0].image_size == 96
    assert load_policy(f"file://{PATH}").image_size == load_agent(f"file://{PATH}")[0].image_size
    for load in (load_policy, load_agent):
        with pytest.raises(UserError, match="memory://robots/other does not exist"):
            load("memory://robots/other")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "cpu:3", "meta", 1.5])
def test_a_device_that_does_not_exist_is_named(device: Any) -> None:
    with pytest.raises(UserError, match=f"device='{device}'"):
        load_policy(PATH, device=device)


def test_an_exported_policy_has_one_set_of_weights() -> None:
    with pytest.raises(UserError, match="ema=True"):
        load_policy(PATH, ema=False)


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    for path in (REPO_ROOT / "docs", tmp_path, tmp_path / "nothing", PATH / "config.yaml"):
        with pytest.raises(UserError, match=r"policies/sim_transfer"):
            load_policy(path)


def test_a_damaged_policy_is_refused(tmp_path: Path) -> None:
    shutil.copytree(PATH, tmp_path / "cut")
    config, weights = tmp_path / "cut" / "config.yaml", tmp_path / "cut" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # a bit
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"cut .*model\.safetensors"):
        load_policy(tmp_path / "cut")
    weights.write_bytes(content[:1000])
    with pytest.raises(UserError, match=r"weights of .*cut cannot be loaded"):
        load_agent(tmp_path / "cut")
    config.write_text("data: {}\n")
    with pytest.raises(UserError, match=r"config\.yaml lacks agent, task"):
        load_agent(tmp_path / "cut")
    config.write_text("data: [\n")
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_agent(tmp_path / "cut")
    config.unlink()
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_policy(tmp_path / "cut")


@pytest.mark.parametrize("content", ["", "\0" * 100, "{}", "[]", "null", '{"files": []}', "\udcff"])
def test_a_damaged_manifest_is_named_with_the_way_out(content: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PATH, tmp_path / "copy"))
    (folder / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json.*Copy the whole folder again"):
        load_policy(folder)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_device_and_type_of_the_script_do_not_matter(
    policy: LoadedPolicy, device: str, dtype: torch.dtype
) -> None:
    expected = episode(policy, 10)
    try:
        torch.set_default_device(device)
        torch.set_default_dtype(dtype)
        actions = episode(load_policy(PATH), 10)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(actions, expected)
    assert actions.dtype == np.float32
