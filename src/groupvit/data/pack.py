"""Pack photos and captions that lie in files, in a table or in parquet into shards."""

import ast
import csv
import importlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

from groupvit.data.shards import Members, Sample, is_text, meta_of, rows_of, write_shards
from groupvit.data.tar import IMAGE_ENDINGS, MAX_TEXT, TEXT_ENDINGS, Fault, Member, image_ending, split_name
from groupvit.errors import InputError, input_error
from groupvit.files import PHOTO_SUFFIXES, new_folder, refuse_pointer
from groupvit.progress import tracked

IMAGE_COLUMNS = "file file_name filename filepath image_path path jpg png webp image img"
CAPTION_COLUMNS = "caption captions text txt title comment description"
_ARCHIVES = (".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_NO_TABLES = (".json", ".jsonl", ".xlsx", ".xls", *_ARCHIVES, *PHOTO_SUFFIXES)
_PARQUET = (".parquet", ".pq")
_ROWS = 64  # of parquet that are read at once: each holds a photo


class Packed(NamedTuple):
    """How much was packed, and what was left out."""

    shards: int
    photos: int
    captions: int
    faults: list[Fault]


def pack(
    source: Path, out: Path, *, photos: Path | None = None, image_column: str = "", caption_column: str = ""
) -> Packed:
    """Write the samples of a folder, a table or parquet to `out/NAME-0000.tar`, …, or nothing.

    `photos` is the folder in which a table's names begin (its own), the columns are found by their usual names.
    """
    faults: list[Fault] = []
    captions: list[int] = []

    def whole() -> Iterator[Sample]:
        for found in tracked("packing", samples):
            if isinstance(found, Fault):
                faults.append(found)
            else:
                captions.append(len(found.captions))
                yield found

    if out.name.startswith("."):
        raise InputError(f"{out}: shards of a hidden name are not found; name a folder without the dot")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is there already; name a new folder for the shards")
    with input_error(f"{source} cannot be read", OSError):
        samples = _open(source, photos, image_column, caption_column)
    with input_error(f"cannot write shards to {out}", OSError), new_folder(out) as unfinished:
        shards = write_shards(whole(), unfinished, prefix=out.name)
        if not shards:
            kind = mode(fault.kind for fault in faults) if faults else ""
            usual = [fault for fault in faults if fault.kind == kind]
            reason = f"; {len(usual):,} of {len(faults):,} left out are like this: {usual[0]}" if usual else ""
            if kind == "unreadable" and photos is None and source.is_file():
                reason += "; if the photos lie elsewhere: --photos FOLDER"
            tables = [file for name in ("*.csv", "*.tsv", "captions.txt") for file in sorted(source.glob(name))]
            for table in tables[:1]:
                reason += f"; if {table.name} has the captions: groupvit data pack {table} {out}"
            raise InputError(f"{source}: no photo with a caption{reason}")
    return Packed(len(shards), len(captions), sum(captions), faults)


def _open(source: Path, photos: Path | None, image_column: str, caption_column: str) -> Iterator[Sample | Fault]:
    columns = {"--image-column": image_column, "--caption-column": caption_column}
    if source.is_dir():
        files, pictures = [], False
        for root, folders, names in os.walk(source, onerror=_refuse):
            folders[:] = _seen(folders)
            split = [split_name(name) for name in names]
            images, texts = ({key for key, ending in split if ending in of} for of in (IMAGE_ENDINGS, TEXT_ENDINGS))
            if images & texts:
                files, pictures = [], True
                break
            pictures |= bool(images)
            files += [Path(root, name) for name in names if name.lower().endswith(_PARQUET) and name[0] != "."]
        if not files and pictures:
            _refuse_options(source, {"--photos": photos, **columns})
            return _folder(source)
        files.sort()
        if files[0].with_suffix(".tar").exists() if files else any(source.glob("*.tar")):
            raise InputError(f"{source} holds shards already: train on it as it is")
        if not files:
            raise InputError(f"{source}: neither photos nor parquet in it")
        _refuse_options(source, {"--photos": photos})
        return _parquet(files, image_column, caption_column)
    if not source.is_file():
        what = "a pipe or a device, of which nothing is read" if source.exists() else "no such file or folder"
        raise InputError(f"{source}: {what}")
    refuse_pointer(source)
    if source.suffix.lower() == ".tar":
        raise InputError(f"{source} is a shard already: train on it as it is")
    if source.suffix.lower() in _NO_TABLES:
        raise InputError(f"{source} is no table: give a folder of photos and captions, a CSV or TSV, or parquet")
    if source.suffix.lower() in _PARQUET:
        _refuse_options(source, {"--photos": photos})
        return _parquet([source], image_column, caption_column)
    return _table(source, photos or source.parent, image_column, caption_column)


def _refuse_options(source: Path, asked: dict[str, object]) -> None:
    """Refuse options that would do nothing with this kind of source."""
    if useless := [option for option, value in asked.items() if value]:
        raise InputError(f"{source}: {useless[0]} does nothing with such a source: leave it out")


def _sample(key: str, name: str, image: Any, captions: Sequence[Any], tags: tuple[str, ...] | None = None) -> Any:
    """Return the sample, or what is wrong with it as a fault of `name`; `image` is bytes or a path."""
    try:
        data = _contents(image) if isinstance(image, Path) else image
    except (OSError, ValueError) as error:  # a name may hold a zero
        return Fault(name, "unreadable", getattr(error, "strerror", None) or str(error))
    captions = tuple(text.strip() for text in captions if isinstance(text, str) and is_text(text))
    if not isinstance(data, bytes):
        return Fault(name, "no-image")
    if not data:
        return Fault(name, "empty-image")
    if not image_ending(data):
        return Fault(name, "undecodable")
    sample = Sample(key, data, captions, tags=tags)
    return meta._replace(key=name) if isinstance(meta := meta_of(sample), Fault) else sample


def _contents(path: Path) -> bytes:
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading may never end
        raise OSError("a pipe or a device")
    return path.read_bytes()


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def _folder(folder: Path) -> Iterator[Sample | Fault]:
    """Yield KEY.jpg with KEY.txt or KEY.json of a folder and those in it, img2dataset's `files` among them."""
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = _seen(folders)
        yield from (Fault(_shown(name), "link") for name in folders if os.path.islink(os.path.join(root, name)))
        found, faults = _members(Path(root), names)
        if not any(ending in IMAGE_ENDINGS for files in found.values() for ending in files):
            # Texts beside folders are no captions, and JSON alone is statistics.
            found = {key: files for key, files in found.items() if "txt" in files and not folders}
        rows, faults = rows_of(found, faults, extras=False)
        place = os.path.relpath(root, folder).replace(os.sep, "/")
        head = "" if place == "." else place + "/"
        yield from (fault._replace(key=_shown(head + fault.key)) for fault in faults)
        for row in rows:
            name = _shown(head + row.key)
            (image,) = (member.name for ending, member in found[row.key].items() if ending in IMAGE_ENDINGS)
            yield _sample(name, name, Path(root, image), row.captions, row.tags)


def _seen(folders: Iterable[str]) -> list[str]:
    """Return the folders that are not hidden, as those of thumbnails and of notebooks' copies are."""
    return sorted(folder for folder in folders if not folder.startswith("."))


def _shown(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _members(root: Path, names: Iterable[str]) -> tuple[Members, list[Fault]]:
    members: Members = {}
    faults: list[Fault] = []
    for name in sorted(names):
        key, ending = split_name(name)
        if name.startswith(".") or ending not in IMAGE_ENDINGS | TEXT_ENDINGS:
            continue
        try:
            size = (root / name).stat().st_size
            text = _contents(root / name) if ending in TEXT_ENDINGS and size <= MAX_TEXT else b""
            member = Member(name, 0, size, 0, text)
        except OSError as error:
            faults.append(Fault(name, "unreadable", error.strerror or str(error)))
            continue
        if members.setdefault(key, {}).setdefault(ending, member) is not member:
            faults.append(Fault(name, "twice"))
    return members, faults


def _column(
    source: Path, columns: Sequence[str], given: str, usual: str, option: str, fit: Sequence[str] | None = None
) -> str:
    """Return the column that is `given`, or the first of the `usual` names (of those that `fit`)."""
    known = {column.strip().lower(): column for column in reversed(columns)}
    known = {name: column for name, column in known.items() if given or fit is None or column in fit}
    for name in [given] if given else usual.split():
        if column := known.get(name.lower()):
            if columns.count(column) > 1:
                raise InputError(f"{source}: several of its columns are {column}; rename all but one")
            return column
    named = ", ".join(columns)[:200]
    if any(Path(column).suffix.lower() in PHOTO_SUFFIXES or "://" in column for column in columns):
        raise InputError(f"{source}: its first row ({named}) is no header: put one above it, such as file,caption")
    urls = option == "image-column" and "url" in [column.strip().lower() for column in columns]
    hint = ", or download the photos of its URLs first (docs/DATA.md)" * urls
    raise InputError(f"{source}: none of its columns ({named}) is {given or option}; name it: --{option}{hint}")


def _table(table: Path, photos: Path, image_column: str, caption_column: str) -> Iterator[Sample | Fault]:
    """Yield the photos of a table with a header, whose rows are captions."""
    with (
        input_error(f"{table} cannot be read as a table in UTF-8", UnicodeError, csv.Error, OSError),
        table.open(encoding="utf-8-sig", newline="") as file,
    ):
        csv.field_size_limit(2**31 - 1)  # a text that is too long is left out, and the table is not
        header = file.readline()
        file.seek(0)
        delimiter = max(",\t;|", key=header.count)
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.DictReader(file, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
        plain = _unquoted if delimiter == "\t" else str  # elsewhere the reader has done it
        rows.fieldnames = columns = [plain(name) for name in rows.fieldnames or ()]
        image = _column(table, columns, image_column, IMAGE_COLUMNS, "image-column")
        caption = _column(table, columns, caption_column, CAPTION_COLUMNS, "caption-column")
        captions: dict[str, list[str]] = {}  # of a photo they need not be neighbours
        line = 1
        try:
            for row in rows:
                line, extra = rows.line_num, row.get(None, ())  # pyright: ignore[reportArgumentType, reportCallIssue]
                name, text = plain(row[image] or "").strip(), plain(row[caption] or "")
                if any(extra):
                    yield Fault(name or f"line {line}", "no-caption", "more cells than the header has: quote commas")
                elif name:
                    captions.setdefault(os.path.normpath(name), []).extend(_listed(text))
                elif is_text(text):  # spreadsheets end with empty rows
                    yield Fault(f"line {line}", "no-image")
        except csv.Error as error:
            advice = "put double quotes around texts that hold commas, line breaks or quotes, and double these quotes"
            raise InputError(f"{table}, after line {line}: {error}; {advice}") from error
    for number, (name, texts) in enumerate(captions.items()):
        yield _sample(f"{number:09d}", name, photos / name, texts)


def _listed(cell: str) -> list[str]:
    """Return the captions of a cell that holds a list of them, as JSON (Flickr30k) or pandas write it."""
    if cell[:1] + cell[-1:] == "[]":
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                if (found := read(cell)) and all(isinstance(each, str) for each in found):
                    return found
    return [cell]


def _unquoted(cell: str) -> str:
    """Return a cell of tabs, which are read without quotes, for a caption may begin with one, as without its own."""
    inner = cell[1:-1]
    return inner.replace('""', '"') if cell == f'"{inner}"' and '"' not in inner.replace('""', "") else cell


def _parquet(files: Sequence[Path], image_column: str, caption_column: str) -> Iterator[Sample | Fault]:
    """Yield the rows of parquet with encoded photos: of img2dataset, or of `datasets`, whose images are structs."""
    with input_error("parquet needs the package pyarrow", ImportError, advice="pip install pyarrow"):
        parquet = importlib.import_module("pyarrow.parquet")
    numbers = itertools.count()
    for path in files:
        with input_error(f"{path}: not a parquet file that can be read", OSError, ValueError):
            opened = parquet.ParquetFile(path)
        names, fields = opened.schema_arrow.names, opened.schema_arrow
        photos = [each.name for each in fields if str(each.type).startswith(("binary", "large_binary", "struct"))]
        image = _column(path, names, image_column, IMAGE_COLUMNS, "image-column", photos)
        caption = _column(path, names, caption_column, CAPTION_COLUMNS, "caption-column")
        with input_error(f"{path} cannot be read", OSError, ValueError):  # Arrow's own errors are these
            batches = opened.iter_batches(_ROWS, columns=[image, caption])
            for place, row in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches)):
                number, data, texts = next(numbers), row[image], row[caption]
                data = data.get("bytes") if isinstance(data, dict) else data
                texts = texts if isinstance(texts, list) else [texts]
                yield _sample(f"{number:09d}", f"{path}: row {place}", data, texts)
