"""Resolves policies to candidates: checks them and finds their settings and records folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from imf_ray.agents.pretrained import load_policy_config
from imf_ray.allocation import RolloutResources
from imf_ray.bundled import is_in_wheel
from imf_ray.checkpoint_dir import checkpoint_rank_key
from imf_ray.cluster import cluster_address
from imf_ray.config import GROUPS, apply_overrides
from imf_ray.errors import UserError
from imf_ray.folders import verify_checkpoint
from imf_ray.rollout.actor_pool import RolloutSpec, rollout_metadata
from imf_ray.rollout.policy_spec import EXPERT, PolicyKind, PolicySpec
from imf_ray.rollout.records import EpisodeRecord, summarize
from imf_ray.rollout.rollout_config import (
    RolloutConfig,
    agent_rollout_config,
    scripted_rollout_config,
)
from imf_ray.rollout.seed_evaluation import Evaluation, OnRecord, evaluation_dir
from imf_ray.schema import (
    Config,
    EvaluateConfig,
    TaskConfig,
    all_options,
    command_options,
    training_task_options,
)
from imf_ray.sim.tasks import TASKS
from imf_ray.storage import download
from imf_ray.training.run_dir import RunDir

CAMERAS_OPTION = "data.camera_names="
OWN_OVERRIDES = ("data.dataset_dir=", "evaluate.", "task.")
"""Starts of the overrides that replace options of a checkpoint."""


@dataclass(frozen=True)
class Candidate:
    """A policy that is ready to be evaluated."""

    name: str
    """Name in tables."""
    config: Config
    """The configuration: an agent's own one with the command line's evaluation options, or the
    command line's."""
    evaluation: Evaluation
    """Runs the episodes and stores their records."""
    renders_here: bool
    """True if the episodes run on this machine, in a cluster that the command starts."""
    checkpoint: Path | None = None
    """The folder of the checkpoint; None for an untrained agent, the expert and replays."""

    def check_rendering(self, seeds: Sequence[int]) -> None:
        """Check before Ray starts that what is not recorded yet can be rendered.

        Raises:
            UserError: the episodes run on this machine, which cannot render.
        """
        evaluate = self.config.evaluate
        if self.renders_here:
            video = evaluate.video != "none"
            self.evaluation.check_rendering(seeds, evaluate.save_trajectories, video)

    def run(
        self,
        seeds: Sequence[int],
        resources: RolloutResources,
        on_record: OnRecord,
        num_videos: int = 0,
    ) -> list[EpisodeRecord]:
        """Run the episodes that have no record yet, and return the records of all seeds.

        Args:
            on_record, num_videos: see `Evaluation.run`.
        """
        save_trajectories = self.config.evaluate.save_trajectories
        return self.evaluation.run(seeds, resources, on_record, save_trajectories, num_videos)


@contextmanager
def claimed(candidates: Sequence[Candidate], way_out: str) -> Iterator[None]:
    """Exclude other writers from the records of all candidates while the `with` block runs.

    Args:
        way_out: see `imf_ray.claims.claim`.

    Raises:
        ClaimedError: another process evaluates one of the policies under the same settings.
    """
    with ExitStack() as stack:
        for candidate in candidates:
            stack.enter_context(candidate.evaluation.store.claimed(way_out))
        yield


def require_settable(overrides: Sequence[str], command: str) -> None:
    """Check that the command uses all overrides.

    Args:
        command: `evaluate` or `compare`.

    Raises:
        UserError: an override belongs to a checkpoint, or the command would ignore it.
    """
    settable, options = command_options(command), all_options()
    for item in overrides:
        key = item.partition("=")[0]
        is_group = key in GROUPS and any(name.startswith(f"{key}.") for name in settable)
        if key in settable or is_group:
            continue
        if key in options and options[key].resumable:
            raise UserError(f"{item} has no effect on this command. Remove it.")
        raise UserError(f"{item} cannot be set here, because it is part of the checkpoint.")


def resolve_candidate(
    spec: PolicySpec,
    config: Config,
    overrides: Sequence[str],
    noise_seed: int,
    records_root: Path,
    output_dir: str | None = None,
) -> Candidate:
    """Check a policy and its task, and make its candidate.

    Args:
        spec: the resolved policy; see `PolicySpec.resolve`.
        config: the command line's configuration, for options that are not part of a checkpoint.
        overrides: the command line's overrides. Those of `evaluate` and `task` also replace a
            checkpoint's options.
        noise_seed: seed of the noise from which an agent generates its chunks.
        records_root: parent folder of the records of the expert, of replays and of policies in a
            wheel.
        output_dir: the folder of the records; None uses `evaluation_dir`.

    Raises:
        UserError: the policy does not exist, is damaged or was trained for another task, or
            `output_dir` has records of another evaluation.
    """
    name, renders_here = _records_name(spec), cluster_address(config) is None
    spec.check_path(config.storage_path)
    if spec.is_agent:
        folder = spec.local_path
        download(folder)
        config = _evaluation_config(folder, _load_complete_checkpoint(folder), config, overrides)
        rollout_config = _rollout_config(config, overrides, noise_seed)
        label = f"{folder.parent.name}/{name}"
        records_root = records_root if is_in_wheel(folder) else folder.parent
    else:
        rollout_config = scripted_rollout_config(
            config.task,
            action_space="joint" if spec == EXPERT else config.task.action_space,
            stop_on_success=config.evaluate.stop_on_success,
            episode_timeout_s=config.evaluate.episode_timeout_s,
            data_format=config.data.format,
        )
        label = name
    rollout_spec = RolloutSpec(spec, rollout_config, config.evaluate.envs_per_actor)
    metadata = rollout_metadata(rollout_spec)
    if output_dir is None:
        records_dir = evaluation_dir(records_root, name, metadata.policy, metadata.settings)
    else:
        records_dir = Path(output_dir)
    evaluation = Evaluation(rollout_spec, metadata, records_dir)
    checkpoint = spec.local_path if spec.kind == PolicyKind.CHECKPOINT else None
    return Candidate(label, config, evaluation, renders_here, checkpoint)


def resolve_candidates(
    specs: Sequence[PolicySpec], config: Config, overrides: Sequence[str], records_root: Path
) -> list[Candidate]:
    """Make the candidates of a comparison: the given resolved policies, then the baselines.

    `compare.baselines` adds the baselines. The expert and replays act in the task of the first
    agent.

    Raises:
        UserError: a policy is given twice, the tasks differ, or a policy is invalid; see
            `resolve_candidate`.
    """
    if len(set(specs)) < len(specs):
        raise UserError(f"A policy is given twice: {', '.join(map(str, specs))}.")
    resolve = partial(
        resolve_candidate,
        overrides=overrides,
        noise_seed=config.evaluate.seed,
        records_root=records_root,
    )
    agents = [spec for spec in specs if spec.is_agent]
    resolved = {spec: resolve(spec, config) for spec in agents}
    if agents:
        config = replace(config, task=resolved[agents[0]].config.task)
    baselines = _baselines(agents, config.task) if config.compare.baselines else []
    added = [spec for spec in baselines if spec not in specs]
    specs = [*specs, *added]
    resolved |= {spec: resolve(spec, config) for spec in specs if spec not in resolved}
    candidates = [resolved[spec] for spec in specs]
    env_ids = sorted({candidate.config.task.env_id for candidate in candidates})
    if len(env_ids) > 1:
        raise UserError(f"The policies act in different tasks: {', '.join(env_ids)}.")
    if len({candidate.name for candidate in candidates}) < len(candidates):
        # Runs in different folders have the same name: use the full paths as names.
        candidates = [
            replace(candidate, name=str(spec))
            for candidate, spec in zip(candidates, specs, strict=True)
        ]
    return [  # there is one baseline of each kind, so its kind is its name
        replace(candidate, name=str(spec.kind)) if spec in added else candidate
        for candidate, spec in zip(candidates, specs, strict=True)
    ]


def select_checkpoint(
    run_dir: Path,
    config: Config,
    overrides: Sequence[str],
    evaluate: Callable[[Candidate], list[EpisodeRecord]],
) -> tuple[Path, list[tuple[str, list[EpisodeRecord]]]]:
    """Select the best checkpoint of a run by its rollouts on the selection seeds.

    The success rate of the best checkpoint on these seeds is too optimistic. So it must be
    evaluated again on other seeds.

    Args:
        evaluate: called with the candidate of each checkpoint; returns its records on the
            selection seeds.

    Returns:
        The folder of the best checkpoint, and the name and the records of every checkpoint.

    Raises:
        UserError: the run has no valid checkpoint, or the selection seeds overlap with those of
            the evaluation.
    """
    selection = selection_seeds(config.evaluate)
    download(run_dir)
    checkpoints = RunDir(run_dir).list_checkpoints()
    if not checkpoints:
        raise UserError(f"{run_dir} has no valid checkpoint.")
    specs = [PolicySpec(PolicyKind.CHECKPOINT, str(checkpoint.path)) for checkpoint in checkpoints]
    candidates = [
        resolve_candidate(spec, config, overrides, selection[0], run_dir) for spec in specs
    ]
    with claimed(candidates, "set another evaluate.selection_seed"):
        for candidate in candidates:
            candidate.check_rendering(selection)
        results = [(candidate.name, evaluate(candidate)) for candidate in candidates]
    scores = [
        checkpoint_rank_key({**checkpoint.metrics, **summarize(records).metrics()})
        for checkpoint, (_, records) in zip(checkpoints, results, strict=True)
    ]
    return checkpoints[scores.index(min(scores))].path, results


def selection_seeds(evaluate: EvaluateConfig) -> range:
    """Return the seeds on which checkpoints are compared for selection.

    Raises:
        UserError: `evaluate.checkpoint_selection` is set, and some of these seeds are also seeds
            of the evaluation.
    """
    selection = range(
        evaluate.selection_seed, evaluate.selection_seed + evaluate.selection_episodes
    )
    evaluation = range(evaluate.seed, evaluate.seed + evaluate.num_episodes)
    overlap = selection[0] <= evaluation[-1] and evaluation[0] <= selection[-1]
    if evaluate.checkpoint_selection is not None and overlap:
        raise UserError(
            f"Checkpoints would be selected on seeds {selection[0]}-{selection[-1]} and evaluated "
            f"on {evaluation[0]}-{evaluation[-1]}. Set evaluate.selection_seed or evaluate.seed so "
            "that the seeds do not overlap."
        )
    return selection


def _records_name(spec: PolicySpec) -> str:
    """Return the name of a policy's records folder, without the hash of its settings."""
    if spec.kind == PolicyKind.EXPERT:
        return str(spec)
    path = Path(spec.path)
    if spec.kind == PolicyKind.REPLAY:
        return f"replay-{path.stem}"
    return f"untrained-{path.name}" if spec.kind == PolicyKind.UNTRAINED else path.name


def _baselines(agents: Sequence[PolicySpec], task: TaskConfig) -> list[PolicySpec]:
    """Return the task's expert (upper baseline) and the untrained first agent (lower baseline).

    A baseline is left out if the task has no expert or if there is no agent.
    """
    upper = [EXPERT] if task.env_id in TASKS else []
    return [*upper, *(replace(agent, kind=PolicyKind.UNTRAINED) for agent in agents[:1])]


def _load_complete_checkpoint(folder: Path) -> Config:
    """Check that all files of a checkpoint exist and are intact; return its configuration."""
    verify_checkpoint(folder)
    return load_policy_config(folder)


def _evaluation_config(
    folder: Path, trained: Config, config: Config, overrides: Sequence[str]
) -> Config:
    """Return a checkpoint's configuration with the command line's evaluation and task options.

    Raises:
        UserError: the task differs from training, and `evaluate.allow_task_mismatch` is false.
    """
    own_overrides = [item for item in overrides if item.startswith(OWN_OVERRIDES)]
    evaluated = apply_overrides(trained, own_overrides)
    if any(item.startswith("task=") for item in overrides):
        evaluated = replace(evaluated, task=config.task)
    mismatches = [
        f"task.{key}={getattr(evaluated.task, key)} (trained with {getattr(trained.task, key)})"
        for key in training_task_options()
        if key != "action_space"  # never allowed, see `make_fitting_env`
        and getattr(evaluated.task, key) != getattr(trained.task, key)
    ]
    if any(item.startswith(CAMERAS_OPTION) for item in overrides):
        cameras, trained_cameras = config.data.camera_names, trained.agent.camera_names
        if sorted(cameras) != sorted(trained_cameras):
            mismatches.append(f"{CAMERAS_OPTION}{cameras} (trained with {trained_cameras})")
    if mismatches and not config.evaluate.allow_task_mismatch:
        raise UserError(
            f"{folder} would be evaluated with settings that it was not trained for: "
            f"{', '.join(mismatches)}. Remove them, or set evaluate.allow_task_mismatch=true."
        )
    return evaluated


def _rollout_config(config: Config, overrides: Sequence[str], noise_seed: int) -> RolloutConfig:
    """Make the rollout config of an agent; the command line may set the cameras to render."""
    cameras = [item for item in overrides if item.startswith(CAMERAS_OPTION)]
    if not cameras:
        return agent_rollout_config(config, noise_seed)
    rendered = apply_overrides(config, cameras[-1:]).data.camera_names
    return agent_rollout_config(config, noise_seed, rendered)
