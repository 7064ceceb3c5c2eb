"""Results of `groupvit segment` as files of other tools."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from groupvit.files import write_atomically, write_picture

if TYPE_CHECKING:
    from groupvit.segmentation import Segmentation

Format = Literal["coco", "coco-polygons", "label-studio", "label-studio-polygons", "labelme", "voc"]


class Export:
    """Writes files beside each photo's results (labelme, voc), and at the end one for all photos (the others)."""

    def __init__(self, formats: Sequence[Format], photos: Sequence[Path], out: Path, labels: Sequence[str]):
        from groupvit.segmentation.formats import check

        for name in formats:
            check(name, labels)
        self.formats, self.out, self.names = dict.fromkeys(formats), out, ()
        self.root = os.path.commonpath([os.path.dirname(os.path.abspath(photo)) for photo in photos])
        self.documents: dict[str, list[Any]] = {name: [] for name in self.formats if name not in ("labelme", "voc")}

    @property
    def lists(self) -> list[str]:
        """Names of the files for all photos."""
        return [f"{name}.json" for name in self.documents] + ["labelmap.txt"] * ("voc" in self.formats)

    def add(self, stem: Path, photo: Path, result: "Segmentation") -> None:
        """Write the photo's own files, and keep its part of the others."""
        place, self.names = Path(os.path.relpath(photo.absolute(), self.root)).as_posix(), result.names
        for name in self.formats:
            polygons = name.endswith("-polygons")
            if name == "voc":
                write_picture(stem.with_name(f"{stem.name}.voc.png"), result.to_voc())
            elif name == "labelme":
                text = json.dumps(
                    result.to_labelme(os.path.relpath(os.path.realpath(photo), os.path.realpath(self.out)))
                )
                write_atomically(stem.with_name(f"{stem.name}.labelme.json"), text.encode())
            elif name.startswith("coco"):
                self.documents[name].append(result.to_coco(place, polygons=polygons))
            else:
                address = f"/data/local-files/?d={quote(os.fsencode(place))}"
                self.documents[name].append(result.to_label_studio(address, polygons=polygons))

    def close(self) -> None:
        """Write the files for all photos."""
        from groupvit.segmentation.formats import joined, voc_labels

        for name, parts in self.documents.items():
            if parts:
                document = joined(parts) if name.startswith("coco") else parts
                write_atomically(self.out / f"{name}.json", json.dumps(document).encode())
        if self.names and "voc" in self.formats:
            write_atomically(self.out / "labelmap.txt", voc_labels(self.names).encode())
