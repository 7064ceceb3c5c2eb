"""What does each group of a model stand for? An HTML page, for any model that `groupvit.load` takes.

    python -m experiments.atlas photos --photos FOLDER --words words.txt --out atlas.html

For each group token of each stage the page shows the patches that it claims most strongly, how often it is used, and
its nouns with their purity. The page holds its pictures and needs nothing else.

A seeded stage has no tokens: its groups start from places of the photo (`SeededGrouping`), so a group's number says
nothing. There k-means over all photos' group vectors takes the place of tokens, and the page says so.
"""

import base64
import html
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F
import tyro
from experiments.command import run_script
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from groupvit import api
from groupvit.errors import InputError
from groupvit.files import PHOTO_SUFFIXES, write_atomically
from groupvit.models import ImageFeatures
from groupvit.photos import rgb_of
from groupvit.progress import tracked
from groupvit.segmentation import Label, Segmentation, Segmenter, parse_labels
from groupvit.segmentation.labels import read_labels

_CROP = 96  # pixels
_STYLE = """body{font:15px/1.4 sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
section{break-inside:avoid;border-top:1px solid #ccc;padding:.6rem 0}h3{margin:0}img{max-width:100%}
p{margin:.2rem 0}"""
_HOW = """<p>Each patch bears the noun of the final segment that owns it. The first noun's share of a group's patches is
the group's purity; the mean purity counts each patch once. Crops are around the patches that the group claims most,
one a photo.</p>"""


@dataclass(frozen=True)
class Look:
    """One photo at one stage, patch by patch: the group that owns it, how surely, and the noun it is given.

    `vectors` are what the groups became; `scale` is the number of the photo's pixels to a patch, down and along.
    """

    photo: Path
    owner: Int[np.ndarray, "rows columns"]
    share: Float[np.ndarray, "rows columns"]
    noun: Int[np.ndarray, "rows columns"]
    vectors: Float[np.ndarray, "groups dim"]
    scale: tuple[float, float]


@dataclass(frozen=True)
class Token:
    """What one group token does over all photos.

    `patches` and `photos` are its shares of them. `purity` is the share of its patches that bear its commonest noun: a
    patch bears the noun of the final segment that owns it. `nouns` are the commonest three with their shares.
    `strongest` are crops around the patches with the largest soft share, one a photo at most.
    """

    index: int
    patches: float
    photos: float
    nouns: tuple[tuple[str, float], ...]
    strongest: tuple["Crop", ...]

    @property
    def purity(self) -> float:
        return self.nouns[0][1]


@dataclass(frozen=True)
class Crop:
    """A square of a photo around a patch: its share, and centre and side in pixels."""

    share: float
    photo: Path
    y: float
    x: float
    side: float


def looks(segmenter: Segmenter, photo: Path, labels: Sequence[Label]) -> list[Look]:
    """Return a photo's look at each stage."""
    result = segmenter.segment(photo, labels, background=None, keep_features=True)
    if len(result.windows) > 1:
        raise InputError(f"{photo}: so long that a window slides over it")
    [features] = [window.features for window in result.windows]
    assert features is not None
    found = []
    for stage, maps in enumerate(features.stages(keep_empty=segmenter.config.image.group_residual)):
        share, owner = maps[0].max(dim=0)
        scale = _scale(result, features)
        vectors = F.normalize(_vectors(features, stage).float(), dim=-1)
        nouns = _sampled(result.label_map, features.grid, scale)
        found.append(Look(photo, owner.cpu().numpy(), share.cpu().numpy(), nouns, vectors.cpu().numpy(), scale))
    return found


def _vectors(features: ImageFeatures, stage: int) -> Float[Tensor, "groups dim"]:
    """Return what the groups of a stage became: the next stage's segments, or the final ones."""
    after = features.ungrouped[stage + 1 :]
    return (after[0].segments if after else features.segments)[0]


def _scale(result: Segmentation, features: ImageFeatures) -> tuple[float, float]:
    [window] = result.windows
    padded = [-(-side // result.patch_size) * result.patch_size for side in (window.height, window.width)]
    down, along = (padded[i] / features.grid[i] / result.step[i] for i in (0, 1))
    return down, along


def _sampled(label_map: np.ndarray, grid: tuple[int, int], scale: tuple[float, float]) -> Int[np.ndarray, "_ _"]:
    """Return the label at the centre of each patch."""
    rows, columns = (
        np.minimum((np.arange(count) + 0.5) * step, side - 1).astype(int)
        for count, step, side in zip(grid, scale, label_map.shape, strict=True)
    )
    return label_map[np.ix_(rows, columns)].astype(np.int64)


def clustered(stage: Sequence[Look], count: int) -> list[Look]:
    """Return the looks with clusters of all photos' groups in the place of groups; a share counts by nearness, too."""
    from sklearn.cluster import KMeans

    vectors = np.concatenate([look.vectors for look in stage])
    found = KMeans(min(count, len(np.unique(vectors, axis=0))), n_init="auto", random_state=0).fit(vectors)

    def of_clusters(look: Look) -> Look:
        cluster = found.predict(look.vectors)
        near = (look.vectors * found.cluster_centers_[cluster]).sum(axis=1)
        return replace(look, owner=cluster[look.owner].astype(np.int64), share=look.share * near[look.owner])

    return list(map(of_clusters, stage))


def tokens(stage: Sequence[Look], words: Sequence[str], count: int) -> list[Token]:
    """Return the tokens of a stage that own a patch at least, the most used first, with `count` crops each."""
    owner, noun = (np.concatenate([getattr(look, name).ravel() for look in stage]) for name in ("owner", "noun"))
    found = []
    for index in np.unique(owner).tolist():
        inside = owner == index
        crops = sorted(_crops(stage, index), key=lambda crop: -crop.share)
        nouns = _shares(noun[inside], words)
        found.append(Token(index, float(inside.mean()), len(crops) / len(stage), nouns[:3], tuple(crops[:count])))
    return sorted(found, key=lambda token: -token.patches)


def _shares(nouns: Int[np.ndarray, " patches"], words: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Return the words that patches bear, the commonest first, with their shares."""
    counts = np.bincount(nouns, minlength=len(words)) / len(nouns)
    return tuple((words[int(i)], float(counts[i])) for i in np.argsort(-counts, kind="stable") if counts[i])


def _crops(stage: Sequence[Look], index: int) -> Iterator[Crop]:
    """Yield the patch that the token claims most of each photo that uses it."""
    for look in stage:
        share = np.where(look.owner == index, look.share, -np.inf)
        row, column = np.unravel_index(share.argmax(), share.shape)
        if np.isfinite(share[row, column]):
            (down, along), height = look.scale, look.owner.shape[0] * look.scale[0]
            y, x, side = (row + 0.5) * down, (column + 0.5) * along, max(3 * down, height / 4)
            yield Crop(float(share[row, column]), look.photo, float(y), float(x), side)


def page(model: str, stages: Sequence[Sequence[Look]], segmenter: Segmenter, words: Sequence[str], crops: int) -> str:
    """Return the whole page."""
    kinds = [stage for stage in segmenter.config.image.stages if stage.has_grouping]
    body = [f"<h1>Atlas of {html.escape(model)}</h1>", f"<p>{len(stages[0])} photos, {len(words)} nouns.</p>", _HOW]
    for number, (stage, kind) in enumerate(zip(stages, kinds, strict=True), start=1):
        count = kind.output_groups
        found = tokens(clustered(stage, count) if kind.seeded else stage, words, crops)
        noun, floor = _shares(np.concatenate([look.noun.ravel() for look in stage]), words)[0]
        purity = sum(token.purity * token.patches for token in found)
        what = "clusters (this stage has no tokens: its groups start from the photo)" if kind.seeded else "group tokens"
        body.append(
            f"<h2>Stage {number}: {len(found)} of {count} {what} used</h2><p>Mean purity {100 * purity:.0f} %. A "
            f"meaningless group would have {100 * floor:.0f} %, the share of {html.escape(noun)} in all patches.</p>"
        )
        body += map(_section, found)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Atlas of {html.escape(model)}'
    )
    return "\n".join([f'<!doctype html><html lang="en">{head}</title><style>{_STYLE}</style>', *body, ""])


def _section(token: Token) -> str:
    nouns = ", ".join(f"{html.escape(word)} {100 * share:.0f} %" for word, share in token.nouns)
    picture = io.BytesIO()
    _strip(token.strongest).save(picture, "WEBP", quality=70)
    data = base64.b64encode(picture.getvalue()).decode()
    return (
        f"<section><h3>{token.index}: {nouns}</h3><p>In {100 * token.photos:.0f} % of photos, "
        f'{100 * token.patches:.1f} % of patches</p><img alt="strongest patches of {token.index}" '
        f'src="data:image/webp;base64,{data}"></section>'
    )


def _strip(crops: Sequence[Crop]) -> Image.Image:
    strip = Image.new("RGB", ((_CROP + 4) * len(crops) - 4, _CROP), "white")
    for i, crop in enumerate(crops):
        photo = rgb_of(crop.photo)
        side = min(round(crop.side), *photo.size)
        left, top = (  # inside the photo
            min(max(round(at - side / 2), 0), whole - side)
            for at, whole in zip((crop.x, crop.y), photo.size, strict=True)
        )
        strip.paste(photo.crop((left, top, left + side, top + side)).resize((_CROP, _CROP)), (i * (_CROP + 4), 0))
    return strip


def _photos(folder: Path, limit: int) -> list[Path]:
    """Return at most `limit` photos of a folder, spread evenly over the sorted list."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not found or limit < 1:
        raise InputError(f"{folder} holds no photos, or the limit of {limit} leaves none: name a folder of photos")
    return found if len(found) <= limit else [found[i * len(found) // limit] for i in range(limit)]


def _labels(file: Path | None, segmenter: Segmenter) -> tuple[Label, ...]:
    words = read_labels(file) if file else segmenter.config.rivals
    if not words:
        raise InputError("this model carries no nouns of its own: add --words FILE, one a line")
    return parse_labels(words)


def main(
    model: tyro.conf.Positional[str],
    photos: Path,
    out: Path = Path("atlas.html"),
    words: Path | None = None,
    limit: int = 300,
    crops: int = 10,
) -> None:
    """Write the atlas of a model.

    Args:
        model: Name of the model, or a checkpoint.
        photos: Folder of photos, with its subfolders.
        out: The page.
        words: Text file of nouns, one a line, or labels as in `segment`; by default those that the model learned.
        limit: Photos to look at.
        crops: Strongest patches to show of each token.
    """
    segmenter = api.load(model)
    if not any(stage.has_grouping for stage in segmenter.config.image.stages):
        raise InputError(f"{model} is a plain ViT: it has no groups to show")
    if crops < 1:
        raise InputError("crops must be at least one")
    labels, stages, left_out = _labels(words, segmenter), [], 0
    for photo in tracked("looking", files := _photos(photos, limit), len(files)):
        try:
            stages.append(looks(segmenter, photo, labels))
        except InputError as error:
            left_out += 1
            print(f"left out: {error}", file=sys.stderr)
    if not stages:
        raise InputError(f"{photos}: none of {len(files)} photos could be read")
    by_stage = list(zip(*stages, strict=True))
    write_atomically(out, page(Path(model).name, by_stage, segmenter, [label.name for label in labels], crops).encode())
    print(f"{out}: {len(stages)} photos" + f", {left_out} left out" * bool(left_out))


if __name__ == "__main__":
    run_script(main)
