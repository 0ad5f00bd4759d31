"""Errors that a user can resolve, in contrast to bugs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(ValueError):
    """Invalid input. The message says what is wrong and how to fix it.

    Entry points print the message without a traceback, unless `debug=true`.
    """


@contextmanager
def error_source(source: str) -> Iterator[None]:
    """Put the option or file that the block reads in front of the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{source}: {error}") from error


class DivergenceError(UserError):
    """Training diverged. Repeating the same training steps would diverge again."""


class StorageError(UserError):
    """A disk or remote storage failed: it is full, cannot be reached, or denies access.

    The same operation may succeed later.
    """


def abridge(texts: Sequence[str], limit: int, separator: str = ", ") -> str:
    """Return texts as one, with the number of those beyond the first `limit`."""
    more = len(texts) - limit
    return separator.join(texts[:limit]) + (f" and {more} more" if more > 0 else "")
