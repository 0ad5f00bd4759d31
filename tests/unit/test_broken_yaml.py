"""Broken YAML ends in one message that names the option or file, the place and the text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imf_ray.agents.pretrained import load_policy_config
from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.sweep.search_space import load_search_space
from imf_ray.training.run_dir import RunDir
from imf_ray.yaml_text import dump_value, dump_yaml, parse_yaml, plain

READERS: dict[str, Callable[[Path], Any]] = {
    "agent": lambda path: load_config([f"agent={path}"]),
    "task": lambda path: load_config([f"task={path}"]),
    "cluster": lambda path: load_config([f"cluster={path}"]),
    "recipe": lambda path: load_config([f"recipe={path}"]),
    "config": lambda path: load_config([f"config={path}"]),
    "search_space": lambda path: load_search_space(str(path)),
    "checkpoint": lambda path: load_policy_config(path.parent),
    "run": lambda path: RunDir(path.parent).read_config(),
}


def message(read: Callable[[Path], Any], path: Path) -> str:
    """Return the message with which reading a file fails."""
    with pytest.raises(UserError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "line", "quoted"),
    [
        ("a: 1\nb:\n\tc: 1\n", 3, "\\tc: 1"),
        ("a: 1\nb: [x, y\nc: 1\n", 3, "c: 1"),
        ("a: {x: 1\n", 1, "a: {x: 1"),
        ("a: 1\nb: {x: [\n\n\n", 2, "b: {x: ["),
        ("a: 1\nb: @x\n", 2, "b: @x"),
        ("a: 1\nb: *x\n", 2, "b: *x"),
        ("a: 1\nb: !x y\n", 2, "b: !x y"),
        ("a: 1\nb: 'x\n", 2, "b: "),
        ("a: 1\n b: 2\n", 2, " b: 2"),
        ("a: 1\na: 2\n", 2, "a: 2"),
        ("a: 1\n---\nb: 2\n", 2, "---"),
        ("a: 1\n? [b]\n: 2\n", 2, "? [b]"),
        ("a: 1\nb: \x07\n", 2, "b: "),
        ("a: &x [*x]\n", 1, "a: &x"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "b: !!python"),
    ],
)
def test_the_line_of_a_file_is_named(
    name: str, content: str, line: int, quoted: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    text = message(READERS[name], path)
    assert str(path) in text and f"line {line}, column" in text and quoted in text


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# only a comment\n",
        b"---\n",
        b"- a\n- b\n",
        b"text\n",
        b"3\n",
        b"null\n",
        b"latin: \xe9\n",
        b"\x89PNG\r\n\x1a\n\x00\x00",
        b"\xff\xfea",
    ],
)
def test_a_file_without_a_dictionary_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert str(path) in message(READERS[name], path)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(UserError, match="it is not valid YAML"):
        parse_yaml("[" * 2000, "it")


@pytest.mark.parametrize("name", ["agent", "recipe", "config", "search_space"])
def test_a_folder_and_a_missing_file_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml" in message(READERS[name], tmp_path / "folder.yaml")
    assert "none.yaml" in message(READERS[name], tmp_path / "none.yaml")
    assert "xxx" in message(READERS[name], tmp_path / f"{'x' * 300}.yaml")


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("config", "agent: 3", "agent"),
        ("config", "data: [a, b]", "data"),
        ("config", "agent: {head: wide}", "agent.head"),
        ("config", "train: {lr: {a: 1}}", "train.lr"),
        ("config", "1: 2", "1"),
        ("config", "yes: 2", "yes"),
        ("config", "train.lr: 1\ntrain: {lr: 2}", "train.lr"),
        ("config", "train: {lr: '${x}'}", "train.lr"),
        ("task", "env_id: [x]", "task.env_id"),
        ("task", "env_id: x\nadapter: yes", "task.adapter"),
        ("task", "env_id: x\nadapter: {kwargs: [1]}", "task.adapter.kwargs"),
        ("agent", "nam: x", "agent.nam"),
        ("agent", "objective: flow", "agent.name"),
        ("recipe", "train: 3", "train"),
        ("recipe", "train.betas: 0.9", "train.betas"),
        ("recipe", "agent: [resnet_imf_attnres]", "agent"),
        ("search_space", "fixed: text\ngrid: {train.lr: [1]}", "fixed"),
        ("search_space", "fixed: {train.lrr: 1}\ngrid: {train.lr: [1]}", "train.lrr"),
        ("search_space", "fixed: {train.lr: [1]}\ngrid: {train.seed: [1]}", "train.lr"),
        ("search_space", "grid: [train.lr]", "grid"),
        ("search_space", "grid: {train.lr: 1}", "train.lr"),
        ("search_space", "grid: {train.lr: [many]}", "train.lr"),
        ("search_space", "grid: {train.lr: [1, 1.0]}", "train.lr"),
        ("search_space", "grid: {train: {lr: [1]}}", "train"),
        ("search_space", "sample: {train.lr: 3}", "train.lr"),
        ("search_space", "sample: {train.lr: {uniform: 3}}", "train.lr"),
        ("search_space", "sample: {train.lr: {uniform: [a, b]}}", "train.lr"),
        ("search_space", "sample: {train.lr: {choice: []}}", "train.lr"),
        ("search_space", "sample: {train.lr: {choice: [1]}}\nnum_samples: [2]", "num_samples"),
        ("search_space", "sample: {train.lr: {choice: [1]}}\nseed: x", "seed"),
        ("search_space", "grid: {train.lr: [1]}\nscheduler: asha", "scheduler"),
        ("search_space", "grid: {train.lr: [1]}\nspace: 1", "space"),
        ("checkpoint", "agent: 3\ndata: {}\ntask: {}", "agent"),
        ("checkpoint", "agent: {name: x}", "data, task"),
    ],
)
def test_a_section_or_value_of_another_type_is_named(
    name: str, content: str, key: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    text = message(READERS[name], path)
    assert key in text
    if key != "agent.name":  # missing, so any source could have set it
        assert str(path) in text or str(path.parent) in text


@pytest.mark.parametrize(
    "item",
    [
        "data.camera_names=[top",
        "data.camera_names=[@top]",
        "data.camera_names=*top",
        "task.adapter.kwargs={a: 1",
        "task.adapter.kwargs={a: 1, a: 2}",
        "agent.head.n_emb=[1",
        "agent.head.n_emb=\t@",
        "agent.head=3",
        "agent.head.n_emb.x=1",
        "a.b.c=1",
        "train=3",
        "run name=x",
        "run_name =x",
        "=x",
        "x",
        "",
        "agent=",
        "agent=[x",
        "agent=3",
        "recipe=@x",
        "config=",
    ],
)
def test_what_was_typed_is_in_the_message(item: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([item])
    assert item.replace("\t", "\\t") in str(error.value).replace("\t", "\\t")
    assert "\n" not in str(error.value)


def test_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for encoding in ("utf-8-sig", "utf-16", "utf-8"):
        path.write_text("agent: {name: é}\r\n", encoding=encoding)
        assert load_config([f"config={path}"]).agent.name == "é"


def test_anchors_and_merge_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "train: &t {lr: 1, seed: 3}\ndata: {camera_names: &c [top]}\nagent:\n  camera_names: *c\n"
    )
    config = load_config([f"config={path}"])
    assert config.agent.camera_names == ["top"] and config.train.seed == 3
    assert plain(parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "it")) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
    }


Leaf = st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
Trees = st.recursive(
    Leaf, lambda part: st.one_of(st.lists(part), st.dictionaries(st.text(), part)), max_leaves=8
)


@settings(max_examples=50)
@given(tree=st.dictionaries(st.text(), Trees, min_size=1))
def test_any_value_that_is_written_is_read_again(tree: dict[str, Any]) -> None:
    assert plain(parse_yaml(dump_yaml(tree), "it")) == tree
    assert plain(parse_yaml(dump_value(tree), "it")) == tree


@given(text=st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_yaml(text, "it")
    except UserError as error:
        assert str(error).startswith("it is not valid YAML in line ")
