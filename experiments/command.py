"""What all scripts do with an error."""

from collections.abc import Iterator
from contextlib import contextmanager

from groupvit.errors import InputError


@contextmanager
def errors_in_one_line(*, resumes: bool = False) -> Iterator[None]:
    """End the script with the error's line; after Ctrl-C a script that `resumes` says so."""
    try:
        yield
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        if not resumes:
            raise
        raise SystemExit("interrupted; the same command goes on from here") from None
