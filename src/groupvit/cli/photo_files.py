"""The photos that a command is given, and the files that their results get."""

import glob
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from groupvit.cli.formats import LISTS, Export
from groupvit.errors import InputError
from groupvit.files import PHOTO_SUFFIXES, found_below, refuse_address

_RESULT = re.compile(r"(.+)\.(?:json|(?:labels|voc|mask-.+)\.png|(?:overlay|groups-\d+)\.jpg)", re.DOTALL)


def find_photos(photos: Sequence[str], recursive: bool = False) -> list[Path]:
    """Return each file once, in the order given; folders and patterns sorted by name and without earlier results."""
    files: dict[str, Path] = {}
    results = {photo for photo in photos if len(photos) > 1 and _is_result(Path(photo))}  # one alone is meant
    if results:
        told = f"{len(results)} results of this command, such as {min(results)}"
        if results.issuperset(photos):
            raise InputError(f"these are {told}: name photos")
        print(f"groupvit: passed over {told}", file=sys.stderr)
    for photo in photos:
        path, others = Path(photo), ""
        refuse_address(photo)
        if path.is_dir():
            matches, others = _inside(path, recursive)
            problem = "folder has no images" + f" (passed over {others})" * bool(others)
        elif path.exists() or path.is_symlink():
            matches, problem = [path], ""
        else:
            found = map(Path, found_below(photo))
            matches = sorted(p for p in found if _is_there(p) and not _is_result(p))
            problem = "pattern matches no files" if glob.has_magic(photo) else "no such file"
        if not matches:
            raise InputError(f"{photo}: {problem}")
        if others:
            print(f"groupvit: {photo}: passed over {others}", file=sys.stderr)
        for match in matches if photo not in results else ():
            files.setdefault(os.path.abspath(match), match)
    if not files:
        raise InputError("no photos: name image files, folders or patterns, before --labels")
    return list(files.values())


def _inside(folder: Path, recursive: bool) -> tuple[list[Path], str]:
    """Return a folder's photos, and in words what else it has besides hidden files and results of this command."""
    photos, others = [], Counter[str]()
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        suffix = path.suffix.lower()
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or _is_result(path):
            continue
        if path.is_dir():
            others["subfolder (see --recursive)"] += not recursive
            others["subfolder that is a link"] += recursive and path.is_symlink()
            others["subfolder that cannot be read"] += recursive and not os.access(path, os.R_OK | os.X_OK)
        elif suffix in PHOTO_SUFFIXES and _is_there(path):
            photos.append(path)
        else:
            heif = " (pip install pillow-heif)" * (suffix in (".heic", ".heif") and suffix not in PHOTO_SUFFIXES)
            special = " (no regular file)" * (suffix in PHOTO_SUFFIXES)
            others[(suffix or "without a suffix") + heif + special] += 1
    return photos, ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()) if count)


def _is_there(path: Path) -> bool:
    """Return True if a listed path is a file, or a link that leads nowhere, which costs only itself."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_result(path: Path) -> bool:
    if path.name in LISTS:
        return next(path.parent.glob("*.labels.png"), None) is not None
    found = _RESULT.fullmatch(path.name)
    if not found or not os.path.isfile(result_file(stem := path.with_name(found[1]), "labels.png")):
        return False
    return os.path.isfile(stem) or os.path.isfile(result_file(stem, "json"))  # of a killed run there may be no JSON


def output_names(files: Sequence[Path]) -> list[str]:
    """Return file names with their suffix, numbered where files of different folders share one."""
    taken, names = set[str](), []
    for file in files:
        name, number = file.name, 1
        while name.lower() in taken:  # many file systems do not tell upper from lower case
            number += 1
            name = f"{file.name}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def keep_others(out: Path, photos: Sequence[Path], export: Export) -> None:
    """Refuse to replace files that no run has written, such as annotations, and what is known of other photos."""
    lists = {name for name in export.lists if (out / name).exists()}
    foreign, own = set(lists), {os.path.realpath(photo) for photo in photos}
    for file in sorted(out.glob("*.labels.png")) if lists else ():
        before = earlier(Path(str(file).removesuffix(".labels.png")))
        listed = lists.intersection(before["lists"])
        foreign -= listed
        other = os.path.realpath(out / str(before.get("path", "")))
        others = listed if other not in own and os.path.isfile(other) else ()
        if lost := export.loses(others, before, os.path.basename(other)):
            raise InputError(f"{out / lost} is of {other}, too, which is not among these photos: {_ELSEWHERE}")
    for name in sorted(foreign):
        raise InputError(f"{out / name} is no result of this command, and would be replaced: {_ELSEWHERE}")
    for photo, name in zip(photos, output_names(photos), strict=True):
        file = result_file(out / name, "json")
        if not os.path.exists(result_file(out / name, "labels.png")):
            if os.path.exists(file):  # of a name too long for a file, Path.exists is an error
                raise InputError(f"{file} is no result of this command, and would be replaced: {_ELSEWHERE}")
        elif path := earlier(out / name).get("path"):
            other = os.path.realpath(out / str(path))
            if other not in own and os.path.exists(other):  # else it was moved, and nobody can tell
                raise InputError(f"{file} is the result of {other}, not of {photo}: {_ELSEWHERE}")


_ELSEWHERE = "choose another --out"


def earlier(stem: Path) -> dict[str, Any]:
    """Return what an earlier run said of a photo, if anything, and in which `lists` it stands."""
    with suppress(OSError, ValueError, RecursionError, TypeError):
        found = {**json.loads(result_file(stem, "json").read_text())}
        os.path.realpath(stem.parent / str(found.get("path", "")))  # no file has a zero in its name
        lists = found.get("lists")
        return found | {"lists": [name for name in lists if isinstance(name, str)] if isinstance(lists, list) else []}
    return {"lists": []}


def is_done(stem: Path, photo: Path, record: dict[str, Any], words: dict[str, list[str]]) -> bool:
    """Return True if a run with this record, but for its lists, has written a photo's results, and after the photo."""
    before = earlier(stem)
    with suppress(OSError, LookupError, TypeError):  # of no such run, or of none
        known = {label["name"]: label["words"] for label in before["labels"] if label["words"]}
        same = all(before[name] == value for name, value in record.items() if name != "lists")
        same &= [*known.items()] == [*words.items()]  # in their order, too
        same &= os.path.realpath(stem.parent / before["path"]) == os.path.realpath(photo)
        return same and os.path.getmtime(photo) <= os.path.getmtime(result_file(stem, "json"))
    return False


def remove_others(stem: Path, before: dict[str, Any], kinds: Collection[str]) -> None:
    """Remove the groups and masks that a run `before` wrote for a photo, of which this one writes other `kinds`."""
    with suppress(OSError, LookupError, TypeError):  # of no such run, or its own no more
        stages = (f"groups-{i}.jpg" for i in itertools.count(1))
        written = mask_kinds([label["name"] for label in before["labels"]])
        written += itertools.takewhile(lambda kind: result_file(stem, kind).is_file(), stages)
        for kind in {*written} - {*kinds}:
            result_file(stem, kind).unlink(missing_ok=True)


def mask_kinds(names: Sequence[str]) -> list[str]:
    """Return suffixes of labels' masks: what some file system refuses becomes -, and equal ones get a number."""
    encoding, kinds = sys.getfilesystemencoding(), dict[str, str]()
    for i, name in enumerate(names):
        kind = "mask-" + re.sub(r"[^\w-]+", "-", str(name).encode(encoding, "replace").decode(encoding))[:40]
        while kind.lower() in kinds or kind == "mask--":
            kind += f"-{i}"
        kinds[kind.lower()] = kind
    return [f"{kind}.png" for kind in kinds.values()]


def result_file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")
