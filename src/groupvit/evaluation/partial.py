"""An evaluation under way: each process appends its photos' counts to a file, and reads those of the others."""

import glob
import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from groupvit.errors import InputError, input_error
from groupvit.evaluation.results import MALFORMED, PhotoScores
from groupvit.files import refuse_remote


class PartialResult:
    """The files `OUT.part-RANK` beside a result file that is not there yet.

    The first line of each says what is evaluated; files of another evaluation are an `InputError`. A last line that was
    cut off is dropped, so an evaluation can be stopped at any time. Leaving the context closes this process's file.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], rank: int = 0, free: Collection[str] = ()):
        """`free` fields of the identity may differ."""
        refuse_remote(out)
        self.out, self.identity, self.free = out, json.loads(json.dumps(identity)), free
        self.scores: dict[str, PhotoScores] = {}
        self._read: dict[Path, int] = {}
        self.refresh()
        path = out.with_name(f"{out.name}.part-{rank}")
        with input_error(f"cannot write {path}", OSError, advice="choose another --out"):
            out.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._file.truncate(self._read.get(path, 0))
            if path not in self._read:
                self._append({"evaluation": self.identity})

    def refresh(self) -> None:
        """Read what other processes, or earlier ones, have added."""
        for path in sorted(self.out.parent.glob(f"{glob.escape(self.out.name)}.part-*")):
            if not path.suffix.removeprefix(".part-").isdecimal():  # a copy that someone keeps
                continue
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            lines = whole.splitlines()
            if lines and path not in self._read:
                self._check(path, lines.pop(0))
            for line in lines:
                with input_error(f"{path} is damaged", *MALFORMED, advice="delete it, its photos are evaluated again"):
                    photo = PhotoScores.from_dict(json.loads(line))
                self.scores[photo.name] = photo
            if whole:
                self._read[path] = self._read.get(path, 0) + len(whole) + 1

    def _check(self, path: Path, line: bytes) -> None:
        with input_error(f"{path} is no part of an evaluation", *MALFORMED, advice="delete it or choose another --out"):
            identity = dict(json.loads(line)["evaluation"])
        fixed = {name: value for name, value in self.identity.items() if name not in self.free}
        if differing := list(_differing(fixed, identity)):
            raise InputError(
                f"{path} is of an evaluation with another {' and '.join(differing)}: delete it or choose another --out"
            )

    def add(self, photo: PhotoScores) -> None:
        """Keep a photo's counts, in the file before anything else happens."""
        self.scores[photo.name] = photo
        with input_error(f"cannot write {self._file.name}", OSError, advice="the same command goes on"):
            self._append(photo.to_dict())

    def _append(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        self._read[Path(self._file.name)] = self._file.tell()

    def wait_for(self, names: Collection[str]) -> None:
        """Wait until all processes have counted all photos."""
        while not self.scores.keys() >= set(names):
            time.sleep(0.2)
            self.refresh()

    def __enter__(self) -> "PartialResult":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # only what `add` could not write, and has said so
            self._file.close()

    def remove(self) -> None:
        """Delete all parts, once their result is written."""
        self._file.close()
        for path in self._read:
            path.unlink(missing_ok=True)


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of fields that differ, and which part of them: "model" with "precision"."""
    for key, value in ours.items():
        held = theirs.get(key)
        if isinstance(value, dict) and isinstance(held, dict) and held != value:
            parts = sorted(name for name in {*value, *held} if value.get(name, "absent") != held.get(name, "absent"))
            yield f"{key} ({', '.join(parts)})"
        elif held != value:
            yield key
