"""Segmentation as one would write it first, to time `Segmenter` against.

Photo by photo and window by window, in float32: the labels are encoded for each photo at the text encoder's full
length, the image encoder runs once for the groups' maps and once more for what the groups are, and every label has
its scores at every pixel. The settings are those of the published evaluation (§3.3 with windows).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from groupvit.models import GroupViT, normalize, temperature
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer


def encode_labels(model: GroupViT, labels: Sequence[str]) -> Tensor:
    """Unit vectors of the labels' prompts, with all the padding that the tokenizer adds."""
    encoder = model.text_encoder
    tokens = Tokenizer(len(encoder.pos_embed))([SIMPLE_TEMPLATE.format(label) for label in labels])
    x = encoder.token_embedding(tokens) + encoder.pos_embed
    for block in encoder.blocks:
        x = block(x)
    return model.embed_text_features(encoder.norm(x)[torch.arange(len(x)), tokens.argmax(dim=1)])


def resize(photo: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(photo.size)
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BILINEAR)


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin; the last one ends at the border."""
    return [*range(0, max(length - window, 0), stride), max(length - window, 0)]


def window_scores(model: GroupViT, crop: Tensor, texts: Tensor) -> Tensor:
    """Scores of the labels at each pixel of a window."""
    groups = model.image_encoder(crop).groups()
    segments = model.embed_image_features(model.image_encoder(crop).segments)
    scores = (temperature(model.logit_scale) * segments[0] @ texts.T).softmax(dim=-1)
    owners = F.interpolate(groups, scale_factor=model.image_encoder.patch_size, mode="bilinear")[0].argmax(dim=0)
    one_hot = F.one_hot(owners[: crop.shape[2], : crop.shape[3]], len(scores)).float()
    return torch.einsum("h w g, g l -> l h w", one_hot, scores)


@torch.inference_mode()
def segment(model: GroupViT, photo: Image.Image, labels: Sequence[str], *, window: int, stride: int) -> np.ndarray:
    """The index of the best label at each pixel of the photo, whose short side is resized to the window's."""
    texts = encode_labels(model, labels)
    pixels = torch.from_numpy(np.array(resize(photo, window))).permute(2, 0, 1)[None]
    image = normalize(pixels)
    total = torch.zeros(1, len(labels), *image.shape[2:])
    count = torch.zeros(image.shape[2:])
    for top in starts(image.shape[2], window, stride):
        for left in starts(image.shape[3], window, stride):
            crop = image[:, :, top : top + window, left : left + window]
            total[0, :, top : top + window, left : left + window] += window_scores(model, crop, texts)
            count[top : top + window, left : left + window] += 1
    return F.interpolate(total / count, size=(photo.height, photo.width), mode="bilinear")[0].argmax(dim=0).numpy()
