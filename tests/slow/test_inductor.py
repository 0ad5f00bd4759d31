"""Compiled updates with inductor's machine code. The unit tests only compile graphs."""

from typing import Any

import pytest

from tests.helpers.trainers import (
    COMPILED_KINDS,
    MakeTrainer,
    batch,
    check_compiled_updates,
    make_trainer,
    one_rank,
)

__all__ = ["batch", "make_trainer", "one_rank"]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("kind", COMPILED_KINDS.values(), ids=COMPILED_KINDS)
def test_compiled_updates_equal_eager_ones(
    make_trainer: MakeTrainer,
    batch: dict[str, Any],
    kind: tuple[str, ...],
) -> None:
    check_compiled_updates(make_trainer, batch, kind)
