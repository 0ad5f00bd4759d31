"""The command line: paths with `=`, environment variables, flags, and printed commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_ray.cli import run_command, split_arguments
from imf_ray.command import Command
from imf_ray.config import load_config, shell_override
from imf_ray.errors import UserError
from imf_ray.storage import expand_variables, parse_path
from imf_ray.sweep.search_space import load_search_space
from imf_ray.terminal import console


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINE", "here")
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path


def message(*argv: str, capsys: pytest.CaptureFixture[str], takes_paths: bool = False) -> str:
    """Run a command that must be refused, and return its message."""

    def run(*_: object) -> None:
        raise AssertionError("the command must not run")

    command = Command("status", run, examples=(), positional="DIR" if takes_paths else None)
    assert run_command(command, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    "item", ["runs/lr=3", "./lr=3", "untrained:runs/lr=3", "../a=b", "/a=b/c", "s3://bucket/a=b"]
)
def test_what_cannot_be_an_option_is_a_path(item: str, folder: Path) -> None:
    assert split_arguments([item, "debug=true"], takes_paths=True) == ([item], ["debug=true"])


@pytest.mark.parametrize("item", ["lr=3", "data=x", "agent.head=x", "a.b=c", "x="])
def test_a_folder_that_looks_like_an_option_is_a_path_if_it_exists(
    item: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"./{item}" in message(item, capsys=capsys, takes_paths=True)
    (folder / item).mkdir()
    assert split_arguments([item], takes_paths=True) == ([item], [])
    assert split_arguments([item], takes_paths=False) == ([], [item])


@pytest.mark.parametrize(
    "item", ["debug=true", "evaluate.episodes=3", "agent=x", "recipe=x", "config=x", "run_name=x"]
)
def test_options_stay_options(item: str, folder: Path) -> None:
    (folder / item).mkdir()
    assert split_arguments([item], takes_paths=True) == ([], [item])


@pytest.mark.parametrize("option", ["data.dataset_dir", "storage_path", "evaluate.output_dir"])
def test_folders_with_an_equals_sign_are_values(option: str) -> None:
    config = load_config([f"{option}=a=b/c=d"])
    section, _, name = option.rpartition(".")
    assert getattr(getattr(config, section) if section else config, name) == "a=b/c=d"


@pytest.mark.parametrize(
    "argv",
    [
        ["--run_name=x"],
        ["-x"],
        ["--print"],
        ["run_name", "=", "x"],
        ["run_name= x", "y"],
        ["run_name=\udcff"],
        ["\udcff"],
    ],
)
def test_what_is_no_option_is_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    named = message(*argv, capsys=capsys).encode(errors="replace").decode()
    assert any(item.strip("\udcff ") in named for item in argv)


@pytest.mark.parametrize("flags", [["--print-config"], ["--print-config", "--print-config"]])
def test_flags_may_stand_anywhere(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = Command("status", message, examples=(), positional="DIR")
    assert run_command(command, ["runs/x", *flags, "run_name=007"]) == 0
    assert "run_name: '007'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("$HOME/runs", "{home}/runs"),
        ("${HOME}/runs", "{home}/runs"),
        ("$HOME", "{home}"),
        ("~/runs", "{home}/runs"),
        ("runs/$MINE-1", "{cwd}/runs/here-1"),
        ("/data/${MINE}x/y", "/data/herex/y"),
        ("price$5", "{cwd}/price$5"),
        ("a$", "{cwd}/a$"),
        ("'$HOME'", "{cwd}/'{home}'"),
        ("s3_${MINE}", "{cwd}/s3_here"),
    ],
)
def test_variables_in_paths_are_replaced(text: str, path: str, folder: Path) -> None:
    expected = Path(path.format(home=folder / "home", cwd=folder))
    config = load_config([f"storage_path={text}", f"data.dataset_dir={text}"])
    assert parse_path(config.storage_path) == parse_path(config.data.dataset_dir) == expected
    (argument,), _ = split_arguments([text], takes_paths=True)
    assert parse_path(argument) == expected


def test_variables_are_replaced_in_urls_and_files_of_options(folder: Path) -> None:
    assert load_config(["storage_path=s3://$MINE/runs"]).storage_path == "s3://here/runs"
    (folder / "home").mkdir()
    (folder / "home" / "mine.yaml").write_text("train.lr: 2\ntrain.swanlab_project: $HOME\n")
    for recipe in ("~/mine.yaml", "$HOME/mine.yaml", "${HOME}/mine.yaml"):
        config = load_config([f"recipe={recipe}"])
        assert config.train.lr == 2 and config.train.swanlab_project == "$HOME"  # is not a path
    (folder / "home" / "mine.yaml").write_text("grid: {train.lr: [2]}\n")
    for space in ("~/mine.yaml", "$HOME/mine.yaml", "home/mine.yaml"):
        assert load_search_space(space).grid == {"train.lr": [2.0]}


def test_the_file_that_may_be_meant_is_named(folder: Path) -> None:
    (folder / "mine.yaml").write_text("grid: {train.lr: [2]}\n")
    for option in ("task", "agent", "recipe"):
        with pytest.raises(UserError, match=rf"{option}=mine\.yaml"):
            load_config([f"{option}=mine"])
    with pytest.raises(UserError, match=r"search_space=mine\.yaml"):
        load_search_space("mine")
    (folder / "a run").mkdir()
    (folder / "a run" / "config.yaml").write_text("train.lr: 2\n")
    with pytest.raises(UserError, match=r"'config=.*a run/config\.yaml'"):
        load_config(["config=a run"])


def test_an_existing_path_is_taken_as_written(folder: Path) -> None:
    (folder / "a$MINE").mkdir()
    (folder / "b$NOT_SET").mkdir()
    assert expand_variables("a$MINE", "it") == "a$MINE"
    assert expand_variables("b$NOT_SET", "it") == "b$NOT_SET"
    assert expand_variables("c$MINE", "it") == "chere"


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("$NOT_SET/runs", "NOT_SET"),
        ("/data/${NOT_SET}", "NOT_SET"),
        ("a$NOT_SET", "NOT_SET"),
        ("${oc.env:HOME}/runs", "oc.env:HOME"),
        ("${}", "${}"),
        ("~nobody9/x", "~nobody9"),
    ],
)
@pytest.mark.parametrize("option", ["storage_path", "data.dataset_dir", "task"])
def test_an_unknown_variable_or_user_is_named(
    text: str, unknown: str, option: str, folder: Path
) -> None:
    suffix = ".yaml" if option == "task" else ""
    with pytest.raises(UserError) as error:
        parse_path(load_config([f"{option}={text}{suffix}"]).storage_path)
        parse_path(load_config([f"{option}={text}"]).data.dataset_dir)
    assert text in str(error.value) and unknown in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["${HOME:-/tmp}", "${HOME%/}/x", "$(pwd)/runs", "${oc.env:HOME}", "${data.format}", "${}"],
)
@pytest.mark.parametrize("option", ["storage_path", "data.dataset_dir", "recipe"])
def test_what_only_a_shell_replaces_is_refused_unless_it_exists(
    text: str, option: str, folder: Path
) -> None:
    path = f"{text}.yaml"
    with pytest.raises(UserError, match=r"\$\{NAME\}") as error:
        load_config([f"{option}={path}"])
    assert f"{option}={path}" in str(error.value) and "shell" in str(error.value)
    (folder / path).mkdir(parents=True)
    assert expand_variables(path, "it") == path


def test_printed_options_are_quoted() -> None:
    assert shell_override("run_name", "plain_1") == "run_name=plain_1"
    assert shell_override("run_name", "run #2") == "'run_name=run #2'"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a:smile:b", "[red]x[/red]", "[x", "007"):
        console.print(f"run_name={name}", soft_wrap=True)
        assert capsys.readouterr().out == f"run_name={name}\n"


def run_with_argument(name: str, option: str, *argv: str) -> list[str] | int:
    """Return the overrides that a command gets whose plain argument sets an option."""
    given: list[str] = []
    command = Command(
        name,
        lambda config, overrides: given.extend(overrides),
        examples=(),
        positional="ARGUMENT",
        argument_option=option,
        resolve=lambda overrides: load_config([]),
    )
    return run_command(command, argv) or given


@pytest.mark.parametrize(
    ("name", "option", "argument"),
    [
        ("evaluate", "checkpoint", "runs/a b/checkpoint_00000002"),
        ("evaluate", "checkpoint", "it's"),
        ("evaluate", "checkpoint", "expert"),
        ("evaluate", "checkpoint", "replay:data/x"),
        ("evaluate", "checkpoint", "s3://bucket/runs/x"),
        ("tune", "search_space", "quickstart"),
        ("tune", "search_space", "my space.yaml"),
        ("collect", "data.dataset_dir", "data/new set"),
    ],
)
def test_a_plain_argument_sets_its_option(
    name: str, option: str, argument: str, folder: Path
) -> None:
    expected = [f"{option}={argument}", "debug=false"]
    assert run_with_argument(name, option, argument, "debug=false") == expected


@pytest.mark.parametrize(
    ("name", "option", "argv", "way_out"),
    [
        ("evaluate", "checkpoint", ["a", "b"], "one value of checkpoint, but 2 are given: a, b"),
        ("evaluate", "checkpoint", ["a", "checkpoint=b"], "2 are given: a, checkpoint=b"),
        ("evaluate", "checkpoint", ["evaluate.seed"], "evaluate.seed=VALUE"),
        ("collect", "data.dataset_dir", ["cpu_transfer"], "recipe=cpu_transfer"),
    ],
)
def test_a_wrong_plain_argument_is_refused(
    name: str,
    option: str,
    argv: list[str],
    way_out: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_with_argument(name, option, *argv) == 2
    assert way_out in capsys.readouterr().err
