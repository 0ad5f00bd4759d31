"""Errors that a user can resolve, in contrast to bugs."""


class UserError(ValueError):
    """Invalid input. The message says what is wrong and how to fix it.

    Entry points print the message without a traceback, unless `debug=true`.
    """


class DivergenceError(UserError):
    """Training diverged. Repeating the same training steps would diverge again."""


class StorageError(UserError):
    """A disk or remote storage failed: it is full, cannot be reached, or denies access.

    The same operation may succeed later.
    """
