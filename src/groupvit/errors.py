"""The one exception that means "the input is wrong", which the command line turns into one line and exit code 2."""


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, in which file, what to do."""
