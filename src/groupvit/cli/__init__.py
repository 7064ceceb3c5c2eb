"""The command line: one thin file a command, which imports heavy things only inside its function."""

import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial, wraps
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import tyro

import groupvit
from groupvit.cli import convert, data, demo, evaluate, segment, train, transfer
from groupvit.errors import InputError
from groupvit.machine import enough_memory, keep_freed_memory


def _command(function: Callable[..., int | None]) -> Any:
    @wraps(function)
    def parsed(*arguments: Any, **options: Any) -> Callable[[], int | None]:
        return partial(function, *arguments, **options)  # tyro parses and runs nothing

    return Annotated[Any, tyro.conf.subcommand(function.__name__, constructor=parsed)]


_DATA = Annotated[
    _command(data.index) | _command(data.doctor) | _command(data.pack) | _command(data.scenes),
    tyro.conf.subcommand("data", description="Index, examine, pack and make training data."),
]
_COMMANDS = (
    _command(segment.segment)
    | _command(train.train)
    | _command(evaluate.evaluate)
    | _command(transfer.transfer)
    | _command(convert.convert)
    | _command(demo.demo)
    | _DATA
)
_told: set[str] = set()  # warnings of this command
_STYLE = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)  # no "{None}|INT", no "--no-resume"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command.

    Exit codes: 0 done (a training that was stopped, too), 1 done in part, 2 wrong usage or input (on stderr), 130
    interrupted.
    """
    try:
        try:
            _mend_environment()
            _told.clear()
            warnings.showwarning = _warn
            keep_freed_memory()
            sys.exit(_run(sys.argv[1:] if argv is None else argv))
        finally:
            _flush()  # now, while a reader that has gone can still be noticed
    except InputError as error:
        _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:  # of the disk or the output
        _fail(f"error: {error}", 2)


def _mend_environment() -> None:
    """Open streams that the caller closed, print what their encoding lacks as escapes, and find a home if none is set.

    Without a home, imports of libraries fail.
    """
    try:
        os.getcwd()
    except FileNotFoundError:  # PyTorch cannot be loaded then
        raise InputError("the folder you are in is gone: change to another one") from None
    if not os.path.isabs(os.path.expanduser("~")):
        os.environ["HOME"] = tempfile.gettempdir()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        raise


def _run(argv: Sequence[str]) -> int | None:
    if list(argv) == ["--version"]:
        return print(f"groupvit {groupvit.__version__}")
    _refuse_slips(argv)
    title, box = str(groupvit.__doc__).partition("\n")[0], io.StringIO()
    try:
        with redirect_stderr(box):
            command = tyro.cli(_COMMANDS, prog="groupvit", description=title, args=argv, config=_STYLE)
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(_summary(box.getvalue())) from None
    with enough_memory("this machine has too little for it, or other programs take too much"):
        return command()


def _refuse_slips(argv: Sequence[str]) -> None:
    """Refuse what a shell or a slip makes of an option, and what no parser could tell from a wish."""
    for option in ("--labels", "--format"):
        if sum(text.partition("=")[0] == option for text in argv) > 1:
            raise InputError(f"{option} is given twice: give it once, with all of its values")
    for text in argv:
        if re.match("--[a-z-]+=~", text):
            raise InputError(f"{text}: shells replace a ~ only at the beginning of a word: write a space for the =")
    for option, value in [*pairwise(argv), *(text.partition("=")[::2] for text in argv if "=" in text)]:
        address = re.match(r"[a-z][a-z0-9+.-]+://", value, re.IGNORECASE)
        if address and option in ("--out", "--cache", "--pictures", "--space"):
            raise InputError(f"{option} {value}: only data is read from an address, results go to a disk")
        if address and option == "--root":
            raise InputError(f"--root {value}: only training data is read from an address, download it first")
        if option == "--out" and not value:
            raise InputError("--out is empty, of which an unset variable may be the cause: name a folder or a file")


def _summary(box: str) -> str:
    """Return what tyro's box says of wrong usage in one line, without the help that it repeats."""
    sections, box = [[]], re.sub(r"\x1b\[[0-9;]*m", "", box)  # a terminal's box has colours
    for line in re.findall(r"^[│ ] (.*?) *│?$", box, re.MULTILINE):  # no frame where the output is ASCII
        if line.startswith(("───", "---")):
            sections.append([])
        elif not line.startswith(" " * 8):
            sections[-1].append(line)
    texts = [" ".join(" ".join(lines).partition("  Got errors")[0].split()) for lines in sections]
    told = [text for text in texts if not text.startswith(("For full", "Argument helptext"))]
    told.sort(key=lambda text: not text.startswith("Unrecognized"))  # a slip of a name explains what is missing
    ways = re.findall("groupvit[a-z ]*--help", " ".join(texts))
    return "; ".join([*(text.rstrip(".") for text in told), f"see {(ways or ['groupvit --help'])[-1]}"])


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    text = " ".join(str(message).splitlines())
    if text not in _told:
        _told.add(text)
        print("groupvit: warning:", text, file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    print("groupvit:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(code)
