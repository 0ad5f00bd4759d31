"""From the name of a policy to its judgement: settings, checks, and where its records are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imf_ray.agents.pretrained import load_policy_config
from imf_ray.allocation import RolloutResources
from imf_ray.config import GROUPS, apply_overrides
from imf_ray.errors import UserError
from imf_ray.rollout.actor_pool import RolloutSpec, rollout_metadata
from imf_ray.rollout.policies import EXPERT, REPLAY, UNTRAINED
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.rollout.rollout_config import (
    RolloutConfig,
    agent_rollout_config,
    scripted_rollout_config,
)
from imf_ray.rollout.seed_evaluation import Evaluation, evaluation_dir
from imf_ray.schema import (
    Config,
    EvaluateConfig,
    all_options,
    command_options,
    training_task_options,
)
from imf_ray.sim.experts import EXPERTS
from imf_ray.storage import download, is_remote, local_dir
from imf_ray.training.checkpoint import checkpoint_rank_key, list_checkpoints, read_checkpoint


@dataclass(frozen=True)
class Candidate:
    """A policy that is judged, under a name for tables."""

    name: str
    config: Config
    """Of its training where it is a checkpoint, with what was set for the judgement."""
    judgement: Evaluation
    checkpoint: Path | None = None

    def play(
        self, seeds: Sequence[int], simulators: RolloutResources, on_record: Callable[..., None]
    ) -> list[EpisodeRecord]:
        """The records of these seeds; what is missing is played."""
        keep = self.config.evaluate.save_trajectories
        return self.judgement.play(seeds, simulators, on_record, keep)


def require_settable(overrides: Sequence[str], command: str) -> None:
    """Refuse options that belong to a checkpoint, or that the command would ignore.

    Args:
        command: `evaluate` or `compare`.

    Raises:
        UserError: an override is such an option.
    """
    settable, options = command_options(command), all_options()
    for item in overrides:
        key = item.partition("=")[0]
        is_group = key in GROUPS and any(name.startswith(f"{key}.") for name in settable)
        if key in settable or is_group:
            continue
        if key in options and options[key].resumable:
            raise UserError(f"{item} means nothing to this command: leave it out.")
        raise UserError(f"{item} cannot be set here: it is part of the checkpoint.")


def resolve_candidate(
    policy: str,
    config: Config,
    overrides: Sequence[str],
    noise_seed: int,
    beside: Path,
    output: str | None = None,
) -> Candidate:
    """Check a policy and its task, and find its records.

    Args:
        policy: as in `imf_ray.rollout.policies`, with an absolute path.
        config: the command line's, for what is not of a checkpoint.
        overrides: those of the command line, which hold for a checkpoint's judgement too.
        beside: the folder of records that belong to no run.
        output: the folder of the records, where it is not the usual one.

    Raises:
        UserError: no such policy, a damaged one, one that was trained for another task, or records
            of another judgement in `output`.
    """
    path = _path_of(policy)
    if _is_scripted(policy):
        judged, home = config, beside
        name = EXPERT if policy == EXPERT else f"replay-{path.stem}"
        task, evaluate = config.task, config.evaluate
        action_space = "joint" if policy == EXPERT else task.action_space
        settings = scripted_rollout_config(
            task,
            action_space,
            stop_on_success=evaluate.stop_on_success,
            episode_timeout_s=evaluate.episode_timeout_s,
            data_format=config.data.format,
        )
    else:
        download(path)
        _check_complete(path)
        judged, home = _evaluation_config(path, config, overrides), path.parent
        name = f"untrained-{path.name}" if policy.startswith(UNTRAINED) else path.name
        settings = _rollout_config(judged, overrides, noise_seed)
    job = RolloutSpec(policy, settings, judged.evaluate.envs_per_actor)
    try:
        identity = rollout_metadata(job)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{policy} cannot be judged in {settings.task.env_id}: {error}") from error
    folder = (
        evaluation_dir(home, name, identity.policy, identity.settings)
        if output is None
        else Path(output)
    )
    label = name if name.startswith((EXPERT, "replay")) else f"{path.parent.name}/{name}"
    checkpoint = None if name.startswith((EXPERT, "replay", "untrained")) else path
    return Candidate(label, judged, Evaluation(job, identity, folder), checkpoint)


def resolve_candidates(
    policies: Sequence[str],
    config: Config,
    overrides: Sequence[str],
    beside: Path,
) -> list[Candidate]:
    """Policies for a comparison, and after them the baselines that `compare.baselines` adds.

    What is no checkpoint plays the task of the first one that is.

    Raises:
        UserError: as `resolve_candidate`; one is named twice, or they play different tasks.
    """
    named = [absolute_policy(policy) for policy in policies]
    trained = [policy for policy in named if not _is_scripted(policy)]
    if config.compare.baselines:
        named += [policy for policy in _baselines(trained, config) if policy not in named]
    contenders: dict[str, Candidate] = {}
    base = config
    for policy in sorted(named, key=_is_scripted):  # checkpoints first: they tell the task
        contenders[policy] = resolve_candidate(
            policy, base, overrides, config.evaluate.seed, beside
        )
        if policy in trained[:1]:
            base = replace(config, task=contenders[policy].config.task)
    ordered = [contenders[policy] for policy in dict.fromkeys(named)]
    tasks = sorted({contender.config.task.env_id for contender in ordered})
    if len(tasks) > 1:
        raise UserError(f"These policies play different tasks: {', '.join(tasks)}.")
    names = [contender.name for contender in ordered]
    if len(set(named)) < len(named):
        raise UserError(f"A policy is named twice: {', '.join(policies)}.")
    if len(set(names)) < len(names):  # runs of one name in different folders
        ordered = [replace(c, name=policy) for c, policy in zip(ordered, named, strict=True)]
    return ordered


def absolute_policy(policy: str) -> str:
    """The name of a policy with its path made absolute.

    Raises:
        UserError: a replay of what is not on this machine.
    """
    if policy == EXPERT:
        return policy
    if policy.startswith(REPLAY) and is_remote(policy):
        raise UserError(f"{policy}: demonstrations are played back from a folder of this machine.")
    for prefix in (UNTRAINED, REPLAY):
        if policy.startswith(prefix):
            return f"{prefix}{local_dir(policy.removeprefix(prefix))}"
    return str(local_dir(policy))


def select_checkpoint(
    run_dir: Path,
    config: Config,
    overrides: Sequence[str],
    judge: Callable[[Candidate], list[EpisodeRecord]],
) -> tuple[Path, list[tuple[str, list[EpisodeRecord]]]]:
    """The best checkpoint of a run on the selection's seeds, and what all of them did there.

    What it is worth must be judged on other seeds: the best of many was lucky too.

    Raises:
        UserError: the run has no valid checkpoint, or the two sets of seeds overlap.
    """
    chosen_on = selection_seeds(config.evaluate)
    download(run_dir)
    saved = list_checkpoints(run_dir)
    if not saved:
        raise UserError(f"{run_dir} is not a run: it has no valid checkpoint.")
    judged, merits = [], []
    for checkpoint in saved:
        contender = resolve_candidate(
            str(checkpoint.path), config, overrides, chosen_on[0], run_dir
        )
        records = judge(contender)
        judged.append((contender.name, records))
        merits.append(checkpoint_rank_key({**checkpoint.metrics, **summarize(records).metrics()}))
    return saved[merits.index(min(merits))].path, judged


def selection_seeds(evaluate: EvaluateConfig) -> range:
    """Seed set A, on which a checkpoint is chosen.

    Raises:
        UserError: one is chosen, and would be reported on some of them.
    """
    chosen_on = range(
        evaluate.selection_seed, evaluate.selection_seed + evaluate.selection_episodes
    )
    reported_on = range(evaluate.seed, evaluate.seed + evaluate.num_episodes)
    overlap = chosen_on[0] <= reported_on[-1] and reported_on[0] <= chosen_on[-1]
    if evaluate.checkpoint_selection is not None and overlap:
        raise UserError(
            f"Checkpoints would be chosen on seeds {chosen_on[0]}-{chosen_on[-1]} and reported on "
            f"{reported_on[0]}-{reported_on[-1]}: set evaluate.selection_seed or evaluate.seed so "
            "that they do not overlap."
        )
    return chosen_on


def _is_scripted(policy: str) -> bool:
    return policy == EXPERT or policy.startswith(REPLAY)


def _baselines(trained: Sequence[str], config: Config) -> list[str]:
    """The top and the bottom of a table: the task's expert, and the first agent untrained."""
    first = next((_path_of(policy) for policy in trained), None)
    if first is not None:
        download(first)
    task = load_policy_config(first).task if first is not None else config.task
    bottom = [f"{UNTRAINED}{first}"] if first is not None else []
    return [EXPERT, *bottom] if task.env_id in EXPERTS else bottom


def _path_of(policy: str) -> Path:
    return Path(policy.removeprefix(UNTRAINED).removeprefix(REPLAY))


def _check_complete(folder: Path) -> None:
    load_policy_config(folder)  # says that it is no checkpoint, where it is none
    read_checkpoint(folder)


def _evaluation_config(folder: Path, config: Config, overrides: Sequence[str]) -> Config:
    """A checkpoint's configuration with what the command line sets of its judgement."""
    trained = load_policy_config(folder)
    settings = [item for item in overrides if item.startswith(("evaluate.", "task."))]
    judged = apply_overrides(trained, settings)
    if any(item.startswith("task=") for item in overrides):
        judged = replace(judged, task=config.task)
    differing = [
        f"task.{key}={getattr(judged.task, key)} (trained with {getattr(trained.task, key)})"
        for key in training_task_options()
        if getattr(judged.task, key) != getattr(trained.task, key)
    ]
    if any(item.startswith("data.camera_names=") for item in overrides):
        cameras, seen = config.data.camera_names, trained.agent.camera_names
        if sorted(cameras) != sorted(seen):
            differing.append(f"data.camera_names={cameras} (trained with {seen})")
    if differing and not config.evaluate.allow_task_mismatch:
        raise UserError(
            f"{folder} would be judged on what it was not trained for: {', '.join(differing)}. "
            "Leave it out, or set evaluate.allow_task_mismatch=true."
        )
    return judged


def _rollout_config(judged: Config, overrides: Sequence[str], noise_seed: int) -> RolloutConfig:
    settings = agent_rollout_config(judged, noise_seed)
    cameras = [item for item in overrides if item.startswith("data.camera_names=")]
    if not cameras:
        return settings
    names = apply_overrides(judged, cameras[-1:]).data.camera_names
    return replace(settings, camera_names=tuple(names))
