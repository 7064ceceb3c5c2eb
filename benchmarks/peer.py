"""GroupViT of `transformers` with our weights, used as well as one can without changing it."""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.models.groupvit.modeling_groupvit import get_grouping_from_attentions

from groupvit.checkpoints import transformers as layout
from groupvit.models import GroupViT, ModelConfig
from groupvit.training.losses import contrastive_loss, multi_label_loss


def port(model: GroupViT, config: ModelConfig) -> Any:
    """Their GroupViTModel, in evaluation mode."""
    transformers.utils.logging.disable_progress_bar()
    from_pretrained: Any = transformers.GroupViTModel.from_pretrained
    with tempfile.TemporaryDirectory() as folder:
        layout.save(Path(folder), model, config)
        return from_pretrained(folder).eval()


def embed_texts(model: Any, tokens: Tensor) -> Tensor:
    return F.normalize(model.text_projection(model.text_model(input_ids=tokens).pooler_output), dim=-1)


def segment(model: Any, pixels: Tensor, texts: Tensor, size: tuple[int, int]) -> Tensor:
    """The best label at each of `size` pixels: `segmentation_logits` of their forward pass, without the whole photo's
    embedding, resized. Their grouping upsamples the first stage's map too, and drops it; here it is given only one."""
    seen = model.vision_model(pixels, output_attentions=True, return_dict=True)
    segments = F.normalize(model.visual_projection(seen.last_hidden_state[0]), dim=-1)
    first, second = seen.attentions
    maps = get_grouping_from_attentions((second @ first,), pixels.shape[2:])[0]
    logits = torch.einsum("g l, g h w -> l h w", segments @ texts.T * model.logit_scale.exp() ** 2, maps)
    return F.interpolate(logits[None], size, mode="bilinear")[0].argmax(dim=0)


def loss(model: Any, pixels: Tensor, tokens: Tensor) -> Tensor:
    """The release's losses; `tokens` are a caption and noun prompts of each photo, with all their padding."""
    images = F.normalize(model.visual_projection(model.vision_model(pixels, return_dict=True).pooler_output), dim=-1)
    texts = embed_texts(model, tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    scale = model.logit_scale.exp()
    total = contrastive_loss(images, texts[:, 0], scale)
    return total + multi_label_loss(images, texts[:, 1:], scale) if tokens.shape[1] > 1 else total
