"""When checkpoints are written and validated."""

from imf_ray.schema import TrainConfig
from imf_ray.training.checkpoint import CheckpointSchedule


def _steps(train: TrainConfig) -> tuple[list[int], list[int]]:
    """The steps after which a checkpoint is due, and those of them that are validated."""
    schedule = CheckpointSchedule(train, steps_per_epoch=4)
    due = [step for step in range(1, train.max_steps + 1) if schedule.due(step)]
    return due, [step for step in due if schedule.validated(step)]


def test_without_validation_only_save_freq_and_the_end_count() -> None:
    train = TrainConfig(max_steps=10, save_freq=3)
    assert _steps(train) == ([3, 6, 9, 10], [])


def test_validation_by_epochs_adds_checkpoints_and_judges_the_last() -> None:
    train = TrainConfig(max_steps=10, save_freq=5, rollout_val_freq_epochs=2)
    assert _steps(train) == ([5, 8, 10], [8, 10])


def test_validation_on_checkpoint_adds_none() -> None:
    train = TrainConfig(max_steps=10, save_freq=4, rollout_validate_on_checkpoint=True)
    assert _steps(train) == ([4, 8, 10], [4, 8, 10])
