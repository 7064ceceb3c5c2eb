"""The one exception that means "the input is wrong", which the command line turns into one line and exit code 2."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, in which file, what to do."""

    def __init__(self, message: str):
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", message))  # a foreign file's names have them


@contextmanager
def input_error(message: str, *kinds: type[Exception], advice: str = "") -> Iterator[None]:
    """Turn an error of these kinds into an `InputError` that says `message`, the reason and the advice."""
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.splitlines()[0]  # torch adds a stack trace
        raise InputError(f"{message}: {reason}" + f"; {advice}" * bool(advice)) from error
