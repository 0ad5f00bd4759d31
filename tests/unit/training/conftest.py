"""Fixtures of the unit tests of training."""

from tests.helpers.trainers import batch, make_trainer, one_rank

__all__ = ["batch", "make_trainer", "one_rank"]
