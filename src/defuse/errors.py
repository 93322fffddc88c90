"""The one exception for what a person can put right."""


class UsageError(ValueError):
    """Bad input: one sentence that names the field or file, its value and the remedy.

    The command line prints it and exits with code 2; nothing has been written by then.
    """
