"""What `transformers` computes of a segmentation, at 224 pixels and with random weights, against ours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from groupvit.checkpoints import transformers as layout
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.segmentation import Segmenter
from groupvit.text.tokenizer import Tokenizer

LABELS = ["dog", "grass", "sky", "traffic light", "person"]
CONFIG = ModelConfig(
    ImageEncoderConfig(dim=64, heads=2, stages=(Stage(2, 16, 16), Stage(1, 8, 8), Stage(1))),
    TextEncoderConfig(width=32, heads=2, layers=2),
    embed_dim=24,
    projector_dim=48,
)


def random_segmenter() -> Segmenter:
    model = build_model(CONFIG)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return Segmenter(model, CONFIG, device="cpu")


@torch.inference_mode()
def test_soft_maps_and_class_scores_are_those_of_transformers(tmp_path: Path) -> None:
    segmenter = random_segmenter()
    layout.save(tmp_path, segmenter.model, CONFIG)
    load: Any = transformers.GroupViTModel.from_pretrained
    other = load(tmp_path).eval().double()
    segmenter.model.double()
    squares = np.random.default_rng(0).integers(0, 256, (14, 14, 3), np.uint8)
    photo = Image.fromarray(squares.repeat(16, 0).repeat(16, 1))

    result = segmenter.segment(photo, LABELS)
    window = result.windows[0]
    theirs = other(
        pixel_values=segmenter._pixels(photo, (224, 224))[None],
        input_ids=Tokenizer()([f"a photo of a {label}." for label in LABELS]),
        output_segmentation=True,
        output_attentions=True,
    )
    maps = F.interpolate(window.groups[-1][None], (224, 224), mode="bilinear")[0]
    # Theirs are logits times the scale twice, ours a softmax: differences between two labels' logits are the same.
    logits = theirs.segmentation_logits[0] / other.logit_scale.exp()
    differences = torch.einsum("g h w, g l -> l h w", maps, window.scores.log() - window.scores.log()[:, :1])
    error = float((logits - logits[:1] - differences).abs().max())
    print(f"\nclass scores on soft maps: {error:.1e}")
    assert error < 1e-9
    assert float(logits.std()) > 0.01
    assert (result.groups[-1] == maps.argmax(0).numpy()).mean() > 0.999


def test_the_port_takes_no_other_size(tmp_path: Path) -> None:
    layout.save(tmp_path, random_segmenter().model, CONFIG)
    load: Any = transformers.GroupViTModel.from_pretrained
    with pytest.raises(ValueError, match="doesn't match model"):
        load(tmp_path)(pixel_values=torch.zeros(1, 3, 448, 448), input_ids=torch.tensor([[49406, 320, 49407]]))
