"""Results of `groupvit segment` as files of other tools."""

import itertools
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

from groupvit.errors import input_error
from groupvit.files import write_atomically, write_picture

if TYPE_CHECKING:
    from groupvit.segmentation import Segmentation

Format = Literal["coco", "coco-polygons", "label-studio", "label-studio-polygons", "labelme", "voc"]
_OF_EACH = ("labelme", "voc")  # these lie beside each photo's results
LISTS = [*(f"{name}.json" for name in get_args(Format) if name not in _OF_EACH), "labelmap.txt"]
"""Names of the files for all photos."""


def path_from(out: Path, photo: str) -> str:
    """Return where a photo is, from the folder of its results."""
    with suppress(ValueError):  # on another drive of Windows
        return os.path.relpath(photo, os.path.realpath(out))
    return os.path.abspath(photo)


class Export:
    """Writes files beside each photo's results (labelme, voc), and at the end one for all photos (the others)."""

    def __init__(self, formats: Sequence[Format], photos: Sequence[Path], out: Path, labels: Sequence[str]):
        from groupvit.segmentation.formats import check

        for name in formats:
            check(name, labels)
        self.formats, self.out, self.labels = dict.fromkeys(formats), out, tuple(labels)
        self.parts: dict[str, list[bytes]] = {name: [] for name in self.formats if name not in _OF_EACH}
        folders = [os.path.dirname(os.path.abspath(photo)) for photo in photos if self.parts]
        with input_error("one list cannot name photos of several drives", ValueError):
            self.root = os.path.commonpath(folders) if folders else ""
        self.earlier: dict[str, str] = {}  # lists as they were
        self.heads: dict[str, dict[str, Any]] = {}  # of COCO's lists: all but the annotations
        self.annotations = Counter[str]()
        self.label_map_written = False

    @property
    def lists(self) -> list[str]:
        """Those of `LISTS` that are written."""
        return [f"{name}.json" for name in self.parts] + ["labelmap.txt"] * ("voc" in self.formats)

    def loses(self, lists: Collection[str], before: dict[str, Any], photo: str) -> str | None:
        """Return the first list of an earlier run that says of another photo what the new list would not."""
        for name in sorted(lists):
            if name == "labelmap.txt":
                with suppress(LookupError, TypeError):
                    names = [label["name"] for label in before["labels"]]
                    if [each for each in names if each != "background"] != [*self.labels]:
                        return name
                continue
            if name not in self.earlier:
                self.earlier[name] = (self.out / name).read_text(errors="replace")
            spelt = "|".join(map(re.escape, (json.dumps(photo)[1:-1], quote(os.fsencode(photo)))))
            if re.search(f'["/=]({spelt})"', self.earlier[name]):  # the end of a path
                return name
        return None

    def add(self, stem: Path, photo: Path, result: "Segmentation") -> None:
        """Write the photo's own files, and keep its part of the others."""
        for name in self.formats:
            polygons = name.endswith("-polygons")
            if name == "voc":
                write_picture(stem.with_name(f"{stem.name}.voc.png"), result.to_voc())
                if not self.label_map_written:
                    from groupvit.segmentation.formats import voc_labels

                    write_atomically(self.out / "labelmap.txt", voc_labels(result.names).encode())
                    self.label_map_written = True
            elif name == "labelme":
                place = os.path.join(os.path.realpath(photo.parent), photo.name)
                text = json.dumps(result.to_labelme(path_from(self.out, place)))
                write_atomically(stem.with_name(f"{stem.name}.labelme.json"), text.encode())
            elif name.startswith("coco"):
                self._keep_instances(name, result.to_coco(self._below(self.root, photo), polygons=polygons))
            else:  # Label Studio counts from the folder that holds the shared one
                place = quote(os.fsencode(self._below(os.path.dirname(self.root), photo)))
                self._keep(name, [result.to_label_studio(f"/data/local-files/?d={place}", polygons=polygons)])

    @staticmethod
    def _below(folder: str, photo: Path) -> str:
        return Path(os.path.relpath(photo.absolute(), folder)).as_posix()

    def _keep_instances(self, name: str, document: dict[str, Any]) -> None:
        images = self.heads.setdefault(name, document | {"images": []})["images"]
        images += [image | {"id": len(images) + 1} for image in document["images"]]
        first = self.annotations[name]
        self._keep(name, [a | {"id": first + a["id"], "image_id": len(images)} for a in document["annotations"]])
        self.annotations[name] += len(document["annotations"])

    def _keep(self, name: str, items: list[Any]) -> None:
        """Keep a part of a list as packed text: as objects, those of thousands of photos would fill the memory."""
        if items:
            self.parts[name].append(zlib.compress(json.dumps(items)[1:-1].encode(), 1))

    def finish(self) -> None:
        """Write the lists of all photos; after an interruption those of an earlier run stay."""
        for name, parts in self.parts.items():
            if head := self.heads.get(name):
                del head["annotations"]
                self._write(name, b'{"annotations": [', parts, b"], " + json.dumps(head).encode()[1:])
            elif parts:
                self._write(name, b"[", parts, b"]")

    def _write(self, name: str, head: bytes, parts: Sequence[bytes], tail: bytes) -> None:
        pieces = (b", " * bool(i) + zlib.decompress(part) for i, part in enumerate(parts))
        write_atomically(self.out / f"{name}.json", itertools.chain([head], pieces, [tail]))
