"""The one error class of our own: a request that cannot be right, whatever the data."""


class UsageError(ValueError):
    """Wrong use: the message says what, where and what to do. The command line exits with 2.

    Everything else that goes wrong with a user's data is a plain ``ValueError`` or ``OSError`` with a
    message of the same three parts; the command line exits with 1.
    """
