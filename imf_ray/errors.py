"""What can go wrong that is no fault of the code."""


class UserError(ValueError):
    """Bad input: the message names the thing that is wrong and the way out.

    Entry points print it as one message without a traceback (unless `debug=true`).
    """


class DivergenceError(UserError):
    """Training has gone wrong in a way in which the same steps would go wrong again."""


class StorageError(UserError):
    """A disk, or a place behind a network, does not give or take what it should: full, out of
    reach, or not permitted. The same may work later.
    """
