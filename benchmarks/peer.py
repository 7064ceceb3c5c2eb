"""GroupViT of `transformers` with our weights, used as well as one can without changing it."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.models.groupvit.modeling_groupvit import get_grouping_from_attentions

from groupvit.checkpoints import transformers as layout
from groupvit.models import GroupViT, ModelConfig
from groupvit.models.tracing import onnx_graph
from groupvit.segmentation.engine import openvino_core
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


class _Seen(nn.Module):
    """What masks need of their image encoder: pooled feature, segments, and the assignments of both stages."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder = model.vision_model

    def forward(self, pixels: Tensor) -> list[Tensor]:
        seen = self.encoder(pixels, output_attentions=True, return_dict=True)
        return [seen.pooler_output, seen.last_hidden_state, *seen.attentions]


def seeing(model: Any) -> Callable[[Tensor], Any]:
    return _Seen(model).eval()


def seeing_in_openvino(model: Any, folder: Path, *, bfloat16: bool) -> Callable[[Tensor], Any]:
    """The same, exported to ONNX and compiled as our own encoder is, for squares of the model's own side."""
    file, names = folder / "theirs.onnx", ["pooled", "segments", "first", "second"]
    if not file.exists():
        side = model.config.vision_config.image_size
        pixels = torch.randn(2, 3, side, side)
        file.write_bytes(onnx_graph(_Seen(model).eval(), {"pixels": pixels}, names, {"pixels": ("batch",)}))
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"}
    settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    compiled = openvino_core().compile_model(str(file), "CPU", settings)
    return lambda pixels: [torch.from_numpy(made) for made in compiled(pixels.numpy()).to_tuple()]


def segment(model: Any, see: Callable[[Tensor], Any], pixels: Tensor, texts: Tensor, size: tuple[int, int]) -> Tensor:
    """The best label at each of `size` pixels: `segmentation_logits` of their forward pass, without the whole photo's
    embedding, resized. Their grouping upsamples the first stage's map too, and drops it; here it is given only one."""
    _, hidden, first, second = see(pixels)
    segments = F.normalize(model.visual_projection(hidden[0]), dim=-1)
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
