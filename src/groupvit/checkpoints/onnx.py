"""Models as ONNX files, for programs without Python: images to groups, texts to vectors, or photos to label maps."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from groupvit.errors import InputError, input_error
from groupvit.files import write_atomically
from groupvit.models import IMAGENET_MEAN, IMAGENET_STD, GroupViT, ImageFeatures, ModelConfig, temperature
from groupvit.models.grouping import Map, SeededGrouping
from groupvit.models.tracing import EXAMPLE, onnx_graph, onnx_runtime
from groupvit.models.trunks import Pixels

_FAR = 1e4  # no cell is near it
_RESIZE = f"""
resize (uint8[height, width, 3] photo) => (uint8[1, 3, rows, columns] pixels)
<double half = {{0.5}}, double one = {{1.0}}, double limit = {{{2048 / 448}}},
 int64[2] first = {{1, 3}}, int64[1] axis = {{0}}> {{
    sides = Shape <start = 0, end = 2> (photo)
    lengths = Cast <to = 11> (sides)
    shortest = ReduceMin <keepdims = 0> (lengths)
    longest = ReduceMax <keepdims = 0> (lengths)
    scale_short = Div (short_side, shortest)
    long_side = Mul (short_side, limit)
    scale_long = Div (long_side, longest)
    scale = Min (scale_short, scale_long)
    scaled = Mul (lengths, scale)
    raised = Add (scaled, half)
    whole = Floor (raised)
    least = Max (whole, one)
    size = Cast <to = 7> (least)
    upright = Transpose <perm = [2, 0, 1]> (photo)
    image = Unsqueeze (upright, axis)
    sizes = Concat <axis = 0> (first, size)
    pixels = Resize <antialias = 1, exclude_outside = 1, mode = "linear"> (image, , , sizes)
}}
"""
"""Resizes a photo as Pillow and `windows.resized` do, with the same limit for long sides."""

Bank = Mapping[str, Float[Tensor, "_ embed"]]
"""Labels with the embeddings of their words."""


class _AnySize(SeededGrouping):
    """Seeded groups whose number follows from the size of the image only when the graph runs.

    There are as many slots as any image needs; those without a tile start where no cell joins them. Of an image longer
    than `groups` : 1 there is one tile across.
    """

    @staticmethod
    def axis(count: int) -> Float[Tensor, " count"]:
        last = torch.as_tensor(count - 1)
        return 2 * torch.arange(count) / last.clamp(min=1) - 1  # ONNX would divide by zero for one cell

    def seeds(self, places: Map, groups: int) -> Float[Tensor, "batch _ channels"]:
        rows, columns = (torch.as_tensor(size, dtype=torch.float32) for size in places.shape[-2:])
        down = (groups * rows / columns).sqrt().round().clamp(1, groups).minimum(rows)
        across = (groups / down).round().clamp(min=1).minimum(columns)
        slot = torch.arange(max(n * round(groups / n) for n in range(1, groups + 1)), dtype=torch.float32)
        inside_rows = _tiles((slot / across).floor(), down, places[0, 0, :, 0])
        inside_columns = _tiles(slot % across, across, places[0, 0, 0])
        tiles = (inside_rows[:, :, None] * inside_columns[:, None]).flatten(1)
        means = tiles / tiles.sum(dim=1, keepdim=True) @ places.flatten(2).transpose(1, 2)
        return torch.where((slot < down * across)[:, None], means, _FAR)


def _tiles(
    index: Float[Tensor, " slots"], count: Float[Tensor, ""], cells: Float[Tensor, " cells"]
) -> Float[Tensor, "slots cells"]:
    """Return 1 where a cell lies in a slot's tile, of `count` along a side, as in adaptive average pooling."""
    size, cell = torch.as_tensor(cells.shape[0]), torch.ones_like(cells).cumsum(0) - 1
    start, end = (index * size / count).floor(), ((index + 1) * size / count).ceil()
    return ((cell >= start[:, None]) & (cell < end[:, None])).float()


def _any_size(model: GroupViT) -> GroupViT:
    """Return a copy that can be traced for images of any size."""
    model = copy.deepcopy(model)
    for stage in model.image_encoder.grouping_stages():
        if stage.seeded is not None:
            stage.seeded = _AnySize(stage.seeded.groups, plain=not stage.seeded.smooth)
    return model


class Groups(nn.Module):
    """Pixels and words' embeddings to the maps of every stage, the final groups' embeddings, and their scores.

    Where there are seeded groups, the last three follow once more for fewer and for more groups.
    """

    def __init__(self, model: GroupViT, config: ModelConfig):
        super().__init__()
        self.model, self.config = model, config
        self.scale = temperature(model.segment_logit_scale if config.segment_loss else model.logit_scale).item()

    def sizes(self) -> list[str]:
        """Return endings of the outputs for each number of groups."""
        last = self.model.image_encoder.grouping_stages()[-1].seeded
        return ["", *(("_fewer", "_more") if last is not None and last.others else ())]

    def names(self) -> list[str]:
        """Return the names of the outputs."""
        stages = sum(stage.has_grouping for stage in self.config.image.stages)
        finals = [f"{name}{size}" for size in self.sizes() for name in (f"groups_{stages}", "embeddings", "scores")]
        return [*(f"groups_{stage}" for stage in range(1, stages)), *finals]

    def encoded(self, pixels: Pixels) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Return the maps of the stages before the last; maps and embeddings of the final groups, for each size."""
        encoder = self.model.image_encoder
        features = encoder(encoder.preprocess(pixels))
        sizes = [self.final(features), *map(self.final, encoder.regrouped(features))]
        return features.stages()[:-1], sizes

    def final(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Return the maps and the embeddings of the final groups."""
        maps = features.stages(keep_empty=self.config.image.group_residual)[-1]
        return maps, self.model.embed_image_features(features.segments)

    def forward(self, pixels: Pixels, words: Float[Tensor, "words embed"]) -> tuple[Tensor, ...]:
        stages, sizes = self.encoded(pixels)
        finals = [(maps, embedded, (self.scale * embedded @ words.T).softmax(dim=-1)) for maps, embedded in sizes]
        return (*stages, *(tensor for final in finals for tensor in final))


class Labelled(nn.Module):
    """A photo, also as resized `pixels`, to its label map and each pixel's score."""

    words: Float[Tensor, "words embed"]
    of_label: Int[Tensor, "labels longest"]

    def __init__(self, groups: Groups, labels: Bank):
        super().__init__()
        self.groups = groups
        self.register_buffer("words", torch.cat([embedded.cpu() for embedded in labels.values()]).clone())
        counts, longest = [len(embedded) for embedded in labels.values()], max(map(len, labels.values()))
        rows = torch.arange(len(self.words)).split(counts)
        # A label with fewer words names its first one again.
        padded = [F.pad(row, (0, longest - len(row)), value=int(row[0])) for row in rows]
        self.register_buffer("of_label", torch.stack(padded))

    def forward(
        self, photo: UInt8[Tensor, "height width 3"], pixels: UInt8[Tensor, "1 3 rows columns"]
    ) -> tuple[Int[Tensor, "height width"], Float[Tensor, "height width"]]:
        patch, total = self.groups.config.image.patch_size, torch.zeros(())
        for maps, embedded in self.groups.encoded(pixels)[1]:
            cosines = embedded[0] @ self.words.T
            scores = (self.groups.scale * cosines[:, self.of_label].amax(dim=-1)).softmax(dim=-1)
            enlarged = F.interpolate(maps, scale_factor=patch, mode="bilinear", align_corners=False)
            owners = enlarged[0, :, : pixels.shape[2], : pixels.shape[3]].argmax(dim=0)
            total = total + scores[owners]
        mean = rearrange(total / len(self.groups.sizes()), "h w l -> 1 l h w")
        best, index = F.interpolate(mean, photo.shape[:2], mode="bilinear", align_corners=False)[0].max(dim=0)
        return index, best


class _Known(nn.Embedding):
    """Embeddings of the tokens that training saw, and zeros for all others (`native.forget_unseen`)."""

    row: Int[Tensor, " vocabulary"]

    def __init__(self, weight: Float[Tensor, "vocabulary width"]):
        seen = weight.any(dim=1)
        super().__init__(int(seen.sum()) + 1, weight.shape[1], _weight=F.pad(weight[seen], (0, 0, 1, 0)))
        self.register_buffer("row", (seen.cumsum(dim=0) * seen).int())

    def forward(self, input: Int[Tensor, "texts length"]) -> Float[Tensor, "texts length width"]:
        return super().forward(self.row[input])


class Texts(nn.Module):
    """Tokens of texts to their unit vectors, and whether training never saw some part of each text."""

    def __init__(self, model: GroupViT):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.known = _Known(model.text_encoder.token_embedding.weight.detach())
        self.model.text_encoder.token_embedding = self.known

    def forward(
        self, tokens: Int[Tensor, "texts length"]
    ) -> tuple[Float[Tensor, "texts embed"], Bool[Tensor, " texts"]]:
        inner = torch.arange(tokens.shape[1]) < tokens.argmax(dim=1, keepdim=True)
        return self.model.encode_text(tokens), ((self.known.row[tokens] == 0) & inner).any(dim=1)


def save_texts(path: Path, model: GroupViT, config: ModelConfig, *, licence: str = "") -> str:
    """Write the ONNX file of the text encoder, once it has been checked, and return what was compared."""
    onnx, onnxruntime = _packages()
    longest = torch.tensor([[*range(1, config.text.context_length), config.text.vocab_size - 1]]).repeat(2, 1)
    names, axes = ("words", "unseen"), {"tokens": ("texts", "length"), "words": ("texts",), "unseen": ("texts",)}
    graph = onnx.load_from_string(onnx_graph(Texts(model), {"tokens": longest}, names, axes))
    data = _checked(onnx, graph, {"context_length": str(config.text.context_length), "licence": licence})
    texts = longest[:, -6:].repeat(2, 1)
    made = onnxruntime.InferenceSession(data).run(["words"], {"tokens": texts.numpy()})[0]
    with torch.inference_mode():
        error = float(np.abs(made - model.encode_text(texts).numpy()).max())
    if not error <= 1e-4:
        raise InputError(f"ONNX Runtime differs: texts' vectors by {error:.0e}; nothing was written")
    write_atomically(path, data)
    return f"texts' vectors are PyTorch's within {error:.0e}"


def save(path: Path, model: GroupViT, config: ModelConfig, *, labels: Bank | None = None, licence: str = "") -> str:
    """Write the ONNX file, with or without labels, once it has been checked, and return what was compared."""
    onnx, _ = _packages()
    if not any(stage.has_grouping for stage in config.image.stages):
        raise InputError("this model has no groups, and an ONNX file gives those of each stage: choose another model")
    groups = Groups(_any_size(model), config)
    pixels = torch.randint(256, EXAMPLE, dtype=torch.uint8)
    if labels is None:
        examples = {"pixels": pixels, "words": torch.randn(3, config.embed_dim)}
        axes = dict.fromkeys(groups.names(), ("batch",))
        axes |= {"pixels": ("batch", None, "height", "width"), "words": ("words",)}
        graph = onnx.load_from_string(onnx_graph(groups, examples, groups.names(), axes))
    else:
        examples = {"photo": torch.zeros(300, 400, 3, dtype=torch.uint8), "pixels": pixels[:1]}
        axes = {"photo": ("height", "width"), "pixels": (None, None, "rows", "columns")}
        graph = onnx.load_from_string(onnx_graph(Labelled(groups, labels), examples, ("label_map", "scores"), axes))
        _put_first(onnx, graph, config.image.short_side)
    trunk = model.image_encoder.trunk
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if trunk is None else (trunk.mean, trunk.std)
    sizes = {"short_side": str(config.image.short_side), "patch_size": str(config.image.patch_size)}
    told = {"labels": json.dumps([*(labels or ())]), **sizes, "mean": json.dumps(mean), "std": json.dumps(std)}
    data = _checked(onnx, graph, told | {"licence": licence})
    compared = compare(data, Groups(model, config), labels)
    write_atomically(path, data)
    return compared


def _packages() -> Any:
    with input_error("ONNX files need more packages: pip install 'groupvit[onnx]'", ImportError):
        import onnx

        return onnx, onnx_runtime()


def _checked(onnx: Any, graph: Any, properties: dict[str, str]) -> bytes:
    """Return the file of a graph with these properties."""
    onnx.helper.set_model_props(graph, properties)
    onnx.checker.check_model(graph, full_check=True)
    return graph.SerializeToString()


def _put_first(onnx: Any, graph: Any, short_side: int) -> None:
    """Let the graph make its pixels, which are its last input, from the photo."""
    resize = onnx.parser.parse_graph(_RESIZE)
    side = onnx.helper.make_tensor("short_side", onnx.TensorProto.DOUBLE, (), [short_side])
    nodes = [*resize.node, *graph.graph.node]
    graph.graph.input.pop()
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend([*resize.initializer, side])


@torch.inference_mode()
def compare(data: bytes, groups: Groups, labels: Bank | None) -> str:
    """Compare the graph with PyTorch on smooth noise; an `InputError` says by how much it differs.

    Rounding decides near ties, so that a few patches may join other groups. In such an image groups have other
    members, and only those of the other images are compared.
    """
    session, equal, error = _packages()[1].InferenceSession(data), list[float](), 0.0
    side = groups.config.image.short_side
    for batch, height, width in ((1, side, side + 9), (2, side + 26, side))[: 2 if labels is None else 1]:
        coarse = 256 * torch.rand(batch, 3, 9, 9, generator=torch.Generator().manual_seed(0))
        pixels = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
        if labels is None:
            inputs = {"pixels": pixels, "words": F.normalize(torch.randn(5, groups.config.embed_dim), dim=-1)}
            expected = groups(**inputs)
        else:  # of a size that needs no resizing
            inputs = {"photo": rearrange(pixels, "1 c h w -> h w c")}
            expected = Labelled(groups, labels)(**inputs, pixels=pixels)
        same = np.ones(batch, dtype=bool)
        made = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for output, got, wanted in zip(session.get_outputs(), made, expected, strict=True):
            wanted = wanted.numpy()
            if output.name.startswith("groups"):
                got, wanted = got.argmax(axis=1), wanted.argmax(axis=1)
            if got.dtype == np.int64:
                equal.append((got == wanted).mean())
                same &= (got == wanted).reshape(batch, -1).all(axis=1)
            elif labels is None:  # beyond the groups there may be empty slots
                error = float(np.maximum(error, np.abs(got[:, : wanted.shape[1]] - wanted)[same].max(initial=0)))
    told = f"{100 * np.mean(equal):.2f} % of pixels are PyTorch's"
    told += f", embeddings within {error:.0e}" if labels is None else ""
    if not (np.mean(equal) >= 0.99 and error <= 1e-4):  # nor if it is no number
        raise InputError(f"ONNX Runtime differs: {told}; nothing was written")
    return told
