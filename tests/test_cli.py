import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import groupvit
from groupvit import cli
from groupvit.errors import InputError

RunCli = Callable[..., tuple[int, str, str]]
COMMANDS = [
    (),
    ("segment",),
    ("train",),
    ("evaluate",),
    ("convert",),
    ("data",),
    ("data", "scenes"),
    ("data", "index"),
    ("data", "doctor"),
]


def test_help_names_every_command(run_cli: RunCli) -> None:
    code, out, err = run_cli("--help")
    assert (code, err) == (0, "")
    assert all(f"• {command} " in out for command in ("segment", "train", "evaluate", "convert", "data"))


def cpu_seconds(*arguments: str) -> float:
    """Return the least processor time of three runs of Python; the clock would count what else the machine does."""
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        after = os.times()
        assert (done.returncode, done.stderr) == (0, "")
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    return min(seconds)


@pytest.fixture(scope="module")
def parser_seconds() -> float:
    """What importing the parser of the command line costs here: processors differ by a factor of five."""
    return cpu_seconds("-c", "import tyro")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_comes_at_once_and_without_torch(command: tuple[str, ...], parser_seconds: float) -> None:
    program = (
        "import sys, groupvit.cli\ntry: groupvit.cli.main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    )
    assert cpu_seconds("-c", program, *command, "--help") < 6 * parser_seconds


def test_version_is_the_package_s(run_cli: RunCli) -> None:
    assert run_cli("--version") == (0, f"groupvit {groupvit.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Expected one of {segment, train, evaluate, transfer, convert, demo, data}; see groupvit --help"),
        (("nonsense",), "Unrecognized options: nonsense; Available subcommands: "),
        (("data",), "Expected one of {index, doctor"),
        (("convert",), "Missing from groupvit convert: "),
        (("segment", "a.jpg", "--labls", "dog"), "options: --labls, dog; Perhaps you meant: --labels LABEL"),
        (
            ("segment", "--labels", "a", "--modle", "x"),
            "options: --modle, x; Perhaps you meant: --model STR; see ",
        ),
        (("segment", "--labels", "a", "--window", "x"), "Error parsing --window: "),
        (
            ("segment", "--labels", "a", "--maps", "x"),
            "'--maps'. Expected one of ('soft', 'hard'); see groupvit segment",
        ),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_and_exit_code_2(run_cli: RunCli, arguments: tuple[str, ...], complaint: str) -> None:
    code, out, err = run_cli(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("groupvit: error: ")
    assert err.count("\n") == 1
    assert complaint in err
    assert "--help\n" in err


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("arguments", [("segment", "a.jpg", "--labls", "dog"), (), ("nonsense",)], ids=str)
def test_wrong_usage_is_one_line_on_a_terminal_with_colours_too(arguments: tuple[str, ...]) -> None:
    import pty  # not on Windows

    outer, inner = pty.openpty()
    try:
        command = [sys.executable, "-m", "groupvit", *arguments]
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
        done = subprocess.run(command, stdout=inner, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    finally:
        os.close(inner)
        os.close(outer)
    assert done.returncode == 2
    assert done.stderr.startswith("groupvit: error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("--help\n")
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--labels", "dog", "--labels", "cat"), "--labels is given twice: give it once, with all of its values"),
        (("--labels", "dog", "--format=coco", "--format", "voc"), "--format is given twice"),
        (("--labels", "dog", "--out", ""), "--out is empty, of which an unset variable may be the cause"),
        (("--labels", "dog", "--out="), "--out is empty"),
        (("--labels", "dog", "--out", "s3://b/x"), "--out s3://b/x: only data is read from an address, results go to"),
        (("--labels", "dog", "--out=gs://b/x"), "--out gs://b/x: only data is read from an address"),
        (("--labels", "dog", "--out=~/results"), "--out=~/results: shells replace a ~ only at the beginning"),
        (("", "--labels", "dog"), "a photo has no name, of which an unset variable may be the cause"),
        (("--labels", "classes.txt"), "classes.txt was taken for a label: if it lists labels: --labels-file classes"),
    ],
    ids=str,
)
def test_what_a_shell_makes_of_arguments_is_one_line(
    run_here: RunCli, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "classes.txt").write_text("dog")
    code, out, err = run_here("segment", *["a.jpg"] * (arguments[0] != ""), *arguments)
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


def fake_command(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    def command() -> int | None:
        if isinstance(result, BaseException):
            raise result
        return result

    def parsed() -> Callable[[], int | None]:
        return command

    monkeypatch.setattr(cli, "_COMMANDS", parsed)


def test_an_input_error_is_one_line_and_exit_code_2(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_command(monkeypatch, InputError("the photo is\nempty: a.png"))
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "groupvit: error: the photo is empty: a.png\n")


def test_a_lack_of_memory_is_one_line_and_exit_code_2(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_command(monkeypatch, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("groupvit: error: out of memory: ")


def test_an_address_to_evaluate_is_refused_as_it_was_given(run_here: RunCli) -> None:
    code, out, err = run_here("evaluate", "photos-trunk", "retrieval", "--root", "s3://bucket/x.tar")
    assert (code, out) == (2, "")
    assert "--root s3://bucket/x.tar: only training data is read from an address, download it first" in err


def test_an_interruption_is_one_line_and_exit_code_130(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_command(monkeypatch, KeyboardInterrupt())
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", "groupvit: interrupted\n")


@pytest.mark.parametrize("code", [None, 0, 1])
def test_what_a_command_returns_is_the_exit_code(monkeypatch: Any, code: int | None) -> None:
    fake_command(monkeypatch, code)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == code


def test_a_bug_shows_its_traceback(monkeypatch: Any) -> None:
    fake_command(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main([])


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "groupvit", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.communicate()[1] == ""


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [(">&-", 0, ""), ("2>&-", 0, ""), (">&- 2>&-", 0, ""), (">/dev/full", 2, "groupvit: error: [Errno 28]")],
)
def test_closed_and_full_outputs_do_no_harm(redirected: str, code: int, said: str) -> None:
    command = f"{sys.executable} -m groupvit --version {redirected}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr[: len(said or "x")]) == (code, said)


@pytest.mark.parametrize("home", ["~", "relative"])
def test_a_home_that_is_no_folder_is_replaced(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", home)
    fake_command(monkeypatch, 0)
    with pytest.raises(SystemExit):
        cli.main([])
    assert os.path.isabs(os.environ["HOME"])


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    folder = tmp_path / "gone"
    script = f"cd {folder} && rmdir {folder} && exec {sys.executable} -m groupvit data doctor /nothing"
    folder.mkdir()
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    told = "groupvit: error: the folder you are in is gone: change to another one\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_an_ascii_output_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    monkeypatch.setattr(cli, "_COMMANDS", lambda: lambda: print("犬 caf\udce9"))
    with pytest.raises(SystemExit):
        cli.main([])
    assert data.getvalue() == b"\\u72ac caf\\udce9\n"


@pytest.mark.parametrize("columns", ["20", "80"])
def test_an_ascii_or_narrow_output_tells_wrong_usage_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setenv("COLUMNS", columns)
    for arguments, complaint in {
        ("segment", "--labls", "x"): "Unrecognized options: --labls, x; Perhaps you meant: --labels",
        ("segment", "--maps", "x"): "Expected one of ('soft', 'hard'); see groupvit segment --help",
        ("segment", "--window", "x"): "Error parsing --window: ",
    }.items():
        with pytest.raises(SystemExit):
            cli.main(arguments)
        said = capsys.readouterr().err
        assert complaint in said
        assert said.endswith(("; see groupvit --help\n", "; see groupvit segment --help\n"))


def test_a_missing_photo_is_one_line(run_here: RunCli) -> None:
    code, out, err = run_here("segment", "missing.jpg", "--labels", "dog", "--model", "missing")
    assert (code, out) == (2, "")
    assert err.startswith("groupvit: error: ")
    assert err.count("\n") == 1
    assert "missing.jpg" in err
