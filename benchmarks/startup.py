"""What a command costs before it does anything, and the first photo: each in processes of its own."""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import skimage
from benchmarks.timing import Rows
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
COMMANDS = (
    "--version",
    "--help",
    *(f"{name} --help" for name in ("segment", "train", "evaluate", "convert", "data", "data index", "data doctor")),
)
# Not `machine.peak_memory`: to import it would be measured, too.
_PEAK = '; print(1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]))'
MEMORY = {
    "Python alone": f"pass{_PEAK}",
    "import groupvit": f"import groupvit{_PEAK}",
    'groupvit.load("photos")': f'import groupvit; model = groupvit.load("photos"){_PEAK}',
}


def launch(arguments: Sequence[str], folder: Path = REPOSITORY) -> tuple[float, float, str]:
    """Seconds of Python with these arguments, by the clock and of the processor, and what it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def _row(name: str, arguments: Sequence[str], rounds: int, folder: Path = REPOSITORY) -> dict[str, str]:
    measured = [launch(arguments, folder)[:2] for _ in range(rounds)]
    seconds, processor = (statistics.median(column) for column in zip(*measured, strict=True))
    return {"what": name, "s": f"{seconds:.2f}", "s of the processor": f"{processor:.2f}", "peak memory, MB": ""}


def rows(rounds: int) -> Rows:
    """Medians; the first start of all, which reads from the disk, is not counted."""
    launch(["-m", "groupvit", "--help"])
    table = [_row(f"groupvit {command}", ["-m", "groupvit", *command.split()], rounds) for command in COMMANDS]
    table.append(_row("import groupvit", ["-c", "import groupvit"], rounds))
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(skimage.data.astronaut()).save(Path(folder, "photo.png"))
        arguments = ["-m", "groupvit", "segment", "photo.png", "--labels", "person", "flag", "wall"]
        table.append(_row("groupvit segment, the first photo", arguments, rounds, Path(folder)))
    for name, code in MEMORY.items():
        megabytes = int(launch(["-c", code])[2]) / 1e6
        table.append({"what": name, "s": "", "s of the processor": "", "peak memory, MB": f"{megabytes:,.0f}"})
    return table
