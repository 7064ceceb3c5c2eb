"""Image-text retrieval: does a caption find its photo among all photos?"""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from groupvit.data.shards import find_shards, read_shard
from groupvit.data.storage import File
from groupvit.data.transforms import center_crop, resize_short_side, to_tensor
from groupvit.errors import InputError
from groupvit.models import GroupViT, ModelConfig
from groupvit.photos import load_rgb
from groupvit.text.tokenizer import Tokenizer

_CHUNK = 64


def recall_at_k(similarity: Float[Tensor, "queries items"], answers: Int[Tensor, "queries answers"], k: int) -> float:
    """Return the percentage of queries with one of their answers (indices of items, -1 pads) among the k nearest."""
    nearest = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    hits = (nearest[:, :, None] == answers[:, None, :]).any(dim=2).any(dim=1)
    return 100 * hits.double().mean().item()


class Retrieval:
    """Photos of shards with all their captions, decoded once; `digest` is a hash of files and captions.

    `shards` and `below` are those of `find_shards`.
    """

    def __init__(self, shards: File, config: ModelConfig, below: File | None = None):
        tokenizer = Tokenizer(config.text.context_length)
        size = config.image.image_size
        photos, captions, owners, digest = [], [], [], hashlib.sha256()
        for shard in find_shards(shards, below):
            for sample in read_shard(shard):
                photo = resize_short_side(load_rgb(sample.image, f"{sample.shard}: {sample.key}"), size)
                owners += [len(photos)] * len(sample.captions)
                captions += sample.captions
                digest.update(sample.image + "\n".join(sample.captions).encode())
                photos.append(to_tensor(center_crop(photo, size)))
        if not photos:
            raise InputError(f"{shards} holds no photos")
        self.digest = digest.hexdigest()
        self.photos = torch.stack(photos)
        self.captions = tokenizer(captions)
        self.owners = torch.tensor(owners)

    @torch.inference_mode()
    def __call__(self, model: GroupViT) -> dict[str, float]:
        """Return R@1, R@5 and R@10 from text to image and from image to text, in percent."""
        device = model.logit_scale.device
        chunks = (model.image_encoder.preprocess(chunk.to(device)) for chunk in self.photos.split(_CHUNK))
        images = torch.cat([model.encode_image(chunk) for chunk in chunks]).float()
        texts = torch.cat([model.encode_text(chunk.to(device)) for chunk in self.captions.split(_CHUNK)]).float()
        similarity = (texts @ images.T).cpu()
        captions = [(self.owners == photo).nonzero()[:, 0] for photo in range(len(images))]
        answers = pad_sequence(captions, batch_first=True, padding_value=-1)
        to_image = {f"text_to_image_r{k}": recall_at_k(similarity, self.owners[:, None], k) for k in (1, 5, 10)}
        return to_image | {f"image_to_text_r{k}": recall_at_k(similarity.T, answers, k) for k in (1, 5, 10)}
