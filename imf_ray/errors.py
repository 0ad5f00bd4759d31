"""The one exception that a user's input can cause."""


class UserError(ValueError):
    """Bad input: the message names the thing that is wrong and the way out.

    Entry points print it as one message without a traceback (unless `debug=true`).
    """
