"""Errors that are not faults of the code."""


class UserError(ValueError):
    """Bad input; the message names what is wrong and how to fix it.

    Entry points print it as one message without a traceback (unless `debug=true`).
    """


class DivergenceError(UserError):
    """Training diverged; repeating the same steps would diverge again."""


class StorageError(UserError):
    """A disk or remote storage failed: it is full, out of reach, or denies access.

    The same operation may succeed later.
    """
