"""Text is taken as it is written, and is printed so that it comes back the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from imf_ray.cli import resume_command
from imf_ray.config import (
    config_from_dict,
    config_to_dict,
    load_config,
    to_override,
    to_yaml,
)
from imf_ray.errors import UserError
from imf_ray.schema import all_options
from imf_ray.schema.values import convert, parse_text
from imf_ray.sweep.search_space import SearchSpace, load_search_space, trial_name
from imf_ray.sweep.sweep_dir import SavedSpace, SweepDir

NOT_TEXT_TO_YAML = [
    "007",
    "2024_11_30",
    "2024-11-30",
    "yes",
    "No",
    "ON",
    "1e3",
    "0x10",
    "0o17",
    "12:30:45",
    "1:30",
    "~",
    ".5",
    "+1",
    "1_000",
    ".inf",
    ".nan",
    "true",
    "Null",
    "<<",
]
"""Texts that some version of YAML reads as something else where they are not quoted."""
NOT_YAML = (
    "#5",
    "run #2",
    "a: b",
    "[x",
    "{x",
    "@x",
    "*x",
    "&x",
    "!x",
    "%x",
    "- x",
    "'quoted'",
    '"quoted"',
    " x ",
    "a\\b",
    "é日本",
    "${data.dataset_dir}",
    "${",
    "???",
    "a=b",
    "it's",
)
"""Texts that are errors or other values where YAML reads them without quotes."""
TEXT_OPTION = "train.swanlab_project"
Texts = st.text(min_size=1).filter(lambda text: text != "null")


def shell(*items: str) -> list[str]:
    """Return the arguments that a shell makes of a printed command."""
    return shlex.split(resume_command("imf_ray.train", items))[3:]


@pytest.mark.parametrize("text", [*NOT_TEXT_TO_YAML, *NOT_YAML])
def test_command_lines_take_text_as_it_is_written(text: str) -> None:
    assert load_config([f"run_name={text}"]).run_name == text
    assert load_config([f"agent.name={text}"]).agent.name == text
    assert load_config(shell(f"cluster.address={text}")).cluster.address == text


def test_null_is_null_only_where_an_option_may_be_null() -> None:
    assert load_config(["run_name=null"]).run_name is None
    assert load_config(["agent.name=null"]).agent.name == "null"
    assert load_config(["data.camera_names=[null]"]).data.camera_names == ["null"]


def test_runs_of_different_names_are_different_runs() -> None:
    names = ["2024_1_13", "2024_11_3", "2024113"]
    assert [load_config([f"run_name={name}"]).run_name for name in names] == names


def in_config(path: Path, text: str) -> str:
    path.write_text(f"agent:\n  name: {text}\n")
    return load_config([f"config={path}"]).agent.name


def in_group(path: Path, text: str) -> str:
    path.write_text(f"name: {text}\n")
    return load_config([f"agent={path}"]).agent.name


def in_recipe(path: Path, text: str) -> str:
    path.write_text(f"agent.name: {text}\n")
    return load_config([f"recipe={path}"]).agent.name


def in_list(path: Path, text: str) -> str:
    path.write_text(f"data:\n  camera_names: [{text}]\n")
    return load_config([f"config={path}"]).data.camera_names[0]


def in_space(path: Path, content: str) -> str:
    path.write_text(content)
    space = load_search_space(str(path))
    (params,) = space.combinations()
    return space.config([], params).agent.name


def in_fixed(path: Path, text: str) -> str:
    return in_space(path, f"{{fixed: {{agent.name: {text}}}, grid: {{train.seed: [1]}}}}")


def in_grid(path: Path, text: str) -> str:
    return in_space(path, f"grid: {{agent.name: [{text}]}}")


def in_sample(path: Path, text: str) -> str:
    return in_space(path, f"sample: {{agent.name: {{choice: [{text}]}}}}")


READERS = [in_config, in_group, in_recipe, in_list, in_fixed, in_grid, in_sample]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("text", NOT_TEXT_TO_YAML)
def test_files_take_text_as_it_is_written(
    read: Callable[[Path, str], str], text: str, tmp_path: Path
) -> None:
    assert read(tmp_path / "mine.yaml", text) == text


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("text", NOT_YAML)
def test_quoted_text_in_files(read: Callable[[Path, str], str], text: str, tmp_path: Path) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    assert read(tmp_path / "mine.yaml", quoted) == text


def test_entries_of_dictionaries_have_the_type_of_their_option(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "env_id: 007\n"
        "adapter: {cameras: {1: 2, yes: no}, qpos: [1e3], kwargs: {a: 007x, b: 1.5, c: [yes]}}\n"
    )
    task = load_config([f"task={tmp_path / 'mine.yaml'}"]).task
    assert task.env_id == "007" and task.adapter is not None
    assert task.adapter.cameras == {"1": "2", "yes": "no"} and task.adapter.qpos == ["1e3"]
    assert task.adapter.kwargs == {"a": "007x", "b": 1.5, "c": [True]}


@given(text=Texts)
def test_any_text_comes_back_from_a_printed_command(text: str) -> None:
    line = shell(to_override(TEXT_OPTION, text), to_override("cluster.address", text))
    config = load_config(line)
    assert config.train.swanlab_project == config.cluster.address == text


@given(texts=st.lists(Texts, min_size=1))
def test_any_list_of_texts_comes_back_from_a_printed_command(texts: list[str]) -> None:
    (item,) = shell(to_override("data.camera_names", texts))
    assert "\n" not in item
    assert load_config([item]).data.camera_names == texts


@settings(max_examples=25)
@given(text=Texts)
def test_any_text_comes_back_from_files(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    config = load_config([f"{TEXT_OPTION}={text}", to_override("data.camera_names", [text])])
    path.write_text(to_yaml(config))
    assert load_config([f"config={path}"]) == config
    assert yaml.safe_load(to_yaml(config)) is not None  # other readers of YAML read it as well
    space = SearchSpace("space", fixed={TEXT_OPTION: text}, grid={"agent.name": [text]})
    trial = space.config([], space.combinations()[0])
    assert trial.train.swanlab_project == trial.agent.name == text


def test_a_sweep_resumes_with_the_options_that_were_typed(tmp_path: Path) -> None:
    overrides = [f"{TEXT_OPTION}={text}" for text in (*NOT_TEXT_TO_YAML, *NOT_YAML)]
    space = SearchSpace("space", grid={"agent.name": [*NOT_TEXT_TO_YAML, *NOT_YAML]})
    SweepDir(tmp_path).write_space(SavedSpace(space, overrides, started_at=0.0))
    saved = SweepDir(tmp_path).read_space()
    assert saved is not None and saved.space == space and saved.overrides == overrides
    for item, params in zip(saved.overrides, saved.space.combinations(), strict=True):
        config = saved.space.config([item], params)
        assert f"{TEXT_OPTION}={config.train.swanlab_project}" == item
        assert config.agent.name == params["agent.name"]


@pytest.mark.parametrize("key", all_options())
def test_every_default_comes_back_from_its_override(key: str) -> None:
    rules = all_options()[key]
    _, _, text = to_override(key, rules.default).partition("=")
    if text:
        assert convert(key, rules.kind, parse_text(key, rules.kind, text)) == rules.default


def test_files_of_earlier_versions_load(tmp_path: Path) -> None:
    """They stored run_name=007 as the text 7, and quoted the same texts as other YAML writers."""
    path = tmp_path / "config.yaml"
    path.write_text("run_name: '7'\nagent: {name: '20241130'}\ntrain: {min_lr: 1.0e-06}\n")
    config = load_config([f"config={path}"])
    assert config.run_name is None and config.agent.name == "20241130"
    assert config.train.min_lr == 1e-6


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "/tmp/x", ".", "..", "...", " ", "a\nb", "a\tb", "\x07", "é" * 101, "a%3A%2F%2Fb"],
)
def test_what_cannot_be_the_name_of_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="run_name"):
        load_config([f"run_name={name}"])


def test_a_name_that_an_earlier_version_accepted_can_still_be_read(tmp_path: Path) -> None:
    stored = config_to_dict(load_config()) | {"run_name": "a/b"}
    assert config_from_dict(stored).run_name == "a/b"
    (tmp_path / "config.yaml").write_text("run_name: a/b\n")
    assert load_config([f"config={tmp_path / 'config.yaml'}", "run_name=b"]).run_name == "b"


@pytest.mark.parametrize("escape", ["\\ud800", "\\0"])
def test_escapes_that_no_path_can_have_are_refused(escape: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f'data: {{dataset_dir: "a{escape}b"}}\n')
    with pytest.raises(UserError, match=r"data\.dataset_dir"):
        load_config([f"config={tmp_path / 'mine.yaml'}"])


def test_empty_text_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    for key in ("data.dataset_dir", "checkpoint", "cluster.address", "agent.name"):
        with pytest.raises(UserError, match=f"{key} is empty"):
            load_config([f"{key}="])
    for content in ("run_name: #5", "run_name:", "run_name: &x"):  # neither null nor a name
        (tmp_path / "mine.yaml").write_text(content)
        with pytest.raises(UserError, match=r"mine\.yaml.*run_name"):
            load_config([f"config={tmp_path / 'mine.yaml'}"])


def test_trials_with_long_and_similar_values_have_names_of_their_own() -> None:
    values = ["2024_1_13", "2024/1/13", "x" * 400, "é" * 400]
    names = [trial_name(number, {"agent.name": text}) for number, text in enumerate(values)]
    assert len(set(names)) == 4 and all(len(name.encode()) <= 255 for name in names)
    assert trial_name(3, {"agent.name": "007"}) == "00003-name_007"


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("train.lr=1e-3", 1e-3),
        ("train.lr=1_000", 1000.0),
        ("train.lr='0.5'", 0.5),
        ("train.max_steps=010", 10),
        ("train.max_steps=0x10", 16),
        ("train.max_steps=1_000", 1000),
        ("train.max_steps=1_000_000", 1_000_000),
        ("train.ema=no", False),
        ("train.ema=1", True),
        ("train.betas=[0, 1e-3]", [0.0, 1e-3]),
        ("cluster.num_cpus=~", None),
    ],
)
def test_numbers_and_words_are_read_by_the_type_of_the_option(item: str, value: object) -> None:
    key = item.partition("=")[0]
    section, name = key.split(".")
    assert getattr(getattr(load_config([item]), section), name) == value


@pytest.mark.parametrize(
    "item",
    [
        "train.lr=abc",
        "train.lr=nan",
        "agent.head.p_drop_emb=.nan",
        "train.betas=[0.9, nan]",
        "train.lr=true",
        "train.lr=[1]",
        "train.lr=",
        "train.max_steps=1e3",
        "train.max_steps=1:30",
        "train.max_steps=1.0",
        "train.max_steps=yes",
        "train.seed=2024_1_13",
        "train.seed=10_00",
        "train.seed=٣",
        "train.lr=1_0.5",
        "train.seed=9223372036854775808",
        "train.ema=2",
        "train.ema=maybe",
        "train.betas=0.9",
        "train.betas=[0.9, x]",
        "cluster.num_cpus=#4",
        "data.camera_names=top",
        "data.camera_names=top,front",
        "data.camera_names={top: 1}",
        "data.camera_names=['']",
        "task.adapter.kwargs=3",
        "task.adapter.qpos={a: b}",
    ],
)
def test_a_value_of_another_type_is_named_with_its_option(item: str) -> None:
    key, _, text = item.partition("=")
    with pytest.raises(UserError) as error:
        load_config([item])
    assert key.rpartition(".")[2] in str(error.value)
    assert text.strip("[]'#") in str(error.value)


def test_the_list_that_would_have_worked_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.camera_names=\[top\]"):
        load_config(["data.camera_names=top"])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("top]", "[top]"),
        ("{top}", "[top]"),
        ("{top, front}", "[top, front]"),
        ("top,front", "[top, front]"),
        ("(top, front)", "[top, front]"),
        ("'[top]'", "[top]"),
        ("top front", "[top, front]"),
        ("{top: 1}", "[VALUE, ...]"),
        ("null", "[VALUE, ...]"),
    ],
)
def test_the_list_that_was_meant_is_suggested(text: str, meant: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([f"data.camera_names={text}"])
    assert str(error.value).endswith(f"Write data.camera_names={meant}.")
    if "VALUE" not in meant:
        assert load_config([f"data.camera_names={meant}"]).data.camera_names[0] == "top"
    with pytest.raises(UserError, match=r"stage_widths=\[8, 16\]"):
        load_config(["agent.vision_backbone.stage_widths=8,16"])


@pytest.mark.parametrize("key", ["data.camera_names", "agent.camera_names"])
@pytest.mark.parametrize("text", ["['']", "[top, '']"])
def test_an_empty_item_names_the_option_that_was_set(key: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}=.*empty item"):
        load_config([f"{key}={text}"])
