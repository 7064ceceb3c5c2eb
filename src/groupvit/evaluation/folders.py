"""Folders of photos and lists of their names."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from groupvit.errors import InputError
from groupvit.evaluation.class_lists import read_text
from groupvit.files import PHOTO_SUFFIXES


def refuse_missing(root: Path) -> None:
    """Refuse what is no folder."""
    if not root.exists():
        raise InputError(f"{root}: no such folder")
    if not root.is_dir():
        raise InputError(f"{root} is a file: unpack it, and name the folder")


def require(root: Path, *parts: str, holds: str) -> None:
    """Refuse a folder without one of its parts, and say what it `holds`."""
    refuse_missing(root)
    for part in parts:
        if not (root / part).exists():
            here = (root / part).parent
            names = [path.name for path in here.iterdir()] if here.is_dir() else []
            near = [f" ({name} is there: rename it)" for name in names if name.lower() == Path(part).name.lower()]
            raise InputError(f"{root} has no {part}{''.join(near)}; {holds}")


def lines(path: Path) -> list[str]:
    """Return the lines of a text that are not blank."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def listed_names(listing: Path) -> list[str]:
    """Read the names of photos, each of which must be there once."""
    names = lines(listing)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{listing} has {twice[0]} twice: drop one of the lines")
    return names


def files_in(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden files."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of photos")
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def photos_in(folder: Path) -> list[Path]:
    """Return the photos of a folder; a warning counts other files, but for those named as a photo (labelme's)."""
    files = files_in(folder)
    photos = [path for path in files if path.suffix.lower() in PHOTO_SUFFIXES]
    inside = [path.name for path in files if path.is_dir()] if not photos else []
    if inside:
        names = ", ".join(inside[:3])
        raise InputError(f"{folder} holds folders ({names}) and no photos: name one of them, or move its photos up")
    stems = {path.stem for path in photos}
    pass_over(folder, [path.name for path in files if path.stem not in stems], "files that are no photos")
    return photos


def photos_by_name(folder: Path) -> dict[str, Path]:
    """Return the photos of a folder by their names without suffix."""
    photos: dict[str, Path] = {}
    for path in photos_in(folder):
        if photos.setdefault(path.stem, path) != path:
            raise InputError(f"{path} and {photos[path.stem].name} would share one mask: rename one of them")
    return photos


def pass_over(folder: Path, names: Sequence[str], what: str) -> None:
    """Warn of files that are not read."""
    if names:
        more = ", ..." if len(names) > 3 else ""
        warnings.warn(f"{folder}: passed over {len(names)} {what} ({', '.join(names[:3])}{more})", stacklevel=3)
