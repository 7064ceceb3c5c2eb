"""The layouts in which DeiT, DINO and MoCo v3 are published, made from networks of `transformers` at random weights."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from groupvit.api import load_encoder
from groupvit.checkpoints.trunks import holds_vit, load_vit, read_vit_config
from groupvit.errors import InputError
from groupvit.models import IMAGENET_MEAN, IMAGENET_STD
from groupvit.models.dense import DenseClassifier

State = dict[str, Tensor]


def network(heads: int, kind: str = "ViT", *, dim: int = 192) -> Any:
    sizes: Any = {"image_size": 32, "patch_size": 8, "hidden_size": dim, "num_attention_heads": heads}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, num_hidden_layers=2, intermediate_size=96, layer_norm_eps=1e-6
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def in_timms_names(model: Any) -> State:
    """The tensors of a `transformers` ViT as timm, DeiT, DINO and MoCo call them."""
    given, made = model.state_dict(), {}
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.distillation_token": "dist_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    made = {new: given[old] for old, new in names.items() if old in given}
    for i in range(2):
        of = {name.removeprefix(f"layers.{i}."): x for name, x in given.items() if name.startswith(f"layers.{i}.")}
        for end in ("weight", "bias"):
            qkv = [of[f"attention.{piece}_proj.{end}"] for piece in "qkv"]
            made[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(qkv)
            made[f"blocks.{i}.attn.proj.{end}"] = of[f"attention.o_proj.{end}"]
            made[f"blocks.{i}.norm1.{end}"] = of[f"layernorm_before.{end}"]
            made[f"blocks.{i}.norm2.{end}"] = of[f"layernorm_after.{end}"]
            made |= {f"blocks.{i}.mlp.{fc}.{end}": of[f"mlp.{fc}.{end}"] for fc in ("fc1", "fc2")}
    return made


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


HEAD = {"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}
LAYOUTS: dict[str, Callable[[State, State], Any]] = {
    "DeiT": lambda state, other: {"model": state | HEAD},
    "DeiT while it trains": lambda state, other: {
        "model": state | HEAD,
        "args": argparse.Namespace(lr=1),
        "optimizer": {},
    },
    "timm": lambda state, other: state | HEAD,
    "DINO's backbone": lambda state, other: state,
    "DINO in whole": lambda state, other: {
        "student": under("module.backbone.", other) | {"module.head.last_layer.weight_v": torch.zeros(3)},
        "teacher": under("backbone.", state) | {"head.mlp.0.weight": torch.zeros(3)},
        "epoch": 7,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 3)},
    },
    "DINO's student alone": lambda state, other: {"student": under("module.backbone.", state), "epoch": 7},
    "half precision": lambda state, other: {name: tensor.half() for name, tensor in state.items()},
}
MOCO: dict[str, Callable[[State, State], Any]] = {
    "in whole": lambda state, other: {
        "arch": "vit_small",
        "state_dict": under("module.base_encoder.", state | {"head.0.weight": torch.zeros(3)})
        | under("module.momentum_encoder.", other)
        | {"module.predictor.0.weight": torch.zeros(3)},
    },
    "momentum encoder alone": lambda state, other: {"state_dict": under("module.momentum_encoder.", state)},
    "probed": lambda state, other: {"state_dict": under("module.", state | HEAD)},
}


def gap(path: Path, model: Any) -> float:
    """How far the features that `groupvit transfer` reads are from those of the network the file was made of."""
    pixels, tokens = torch.randint(256, (2, 3, 48, 32)), 1 + hasattr(model.embeddings, "distillation_token")
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        images = (pixels / 255 - mean) / std
        expected = model(images, interpolate_pos_encoding=True).last_hidden_state[:, tokens:]
        (found,) = DenseClassifier(load_encoder(str(path)), 21).features(pixels.byte())
        return float((found.flatten(2).mT - expected).abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_gives_the_features_of_the_network_in_it(layout: str, tmp_path: Path) -> None:
    model, path = network(3), tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](in_timms_names(model), in_timms_names(network(3))), path)
    assert holds_vit(path)
    assert gap(path, model) < (1e-5 if layout != "half precision" else 1e-2)
    config = read_vit_config(path)
    assert (config.heads, config.depth, config.image_size, config.mean) == (3, 2, 32, IMAGENET_MEAN)


def test_timms_statistics_lie_beside_its_file(tmp_path: Path) -> None:
    path, beside = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_file(in_timms_names(network(3)), path)
    for told, mean in (({}, IMAGENET_MEAN), ({"pretrained_cfg": {"mean": [0.5] * 3, "std": [1] * 3}}, (0.5,) * 3)):
        beside.write_text(json.dumps(told))
        assert read_vit_config(path).mean == mean
    for wrong in ("[0.5]", "[1, 1, 0]", '"grey"', "null"):
        beside.write_text(f'{{"pretrained_cfg": {{"mean": [0.5, 0.5, 0.5], "std": {wrong}}}}}')
        with pytest.raises(InputError, match=r"config.json: mean and std are not three numbers each, std above 0"):
            read_vit_config(path)


@pytest.mark.parametrize(("dim", "heads"), [(384, 6), (1024, 16), (1280, 16), (1408, 16)])
def test_the_largest_vits_have_wider_heads(dim: int, heads: int, tmp_path: Path) -> None:
    torch.save(in_timms_names(network(heads, dim=dim)), tmp_path / "weights.pth")
    assert read_vit_config(tmp_path / "weights.pth").heads == heads


@pytest.mark.parametrize("layout", MOCO)
def test_mocos_vit_has_twelve_heads_and_is_the_one_with_gradients(layout: str, tmp_path: Path) -> None:
    model = network(12)
    with torch.no_grad():
        model.embeddings.position_embeddings[:, 0] = 0  # sines and cosines for the patches alone
    torch.save(MOCO[layout](in_timms_names(model), in_timms_names(network(12))), tmp_path / "moco.pth.tar")
    assert gap(tmp_path / "moco.pth.tar", model) < 1e-5


def test_a_distilled_deit_keeps_both_of_its_tokens(tmp_path: Path) -> None:
    model = network(3, "DeiT")
    model.save_pretrained(tmp_path / "folder")
    statistics = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    (tmp_path / "folder" / "preprocessor_config.json").write_text(json.dumps(statistics))
    torch.save({"model": in_timms_names(model) | {"head_dist.weight": torch.zeros(3)}}, tmp_path / "deit.pth")
    save_file(in_timms_names(model), tmp_path / "timm.safetensors")
    for name in ("folder", "deit.pth", "timm.safetensors"):
        assert holds_vit(tmp_path / name)
        assert gap(tmp_path / name, model) < 1e-5, name


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state | {"model": Evil()}, "nothing in it was executed"),
        (lambda state: {"teacher": 3}, "holds no state dict"),
        (lambda state: {}, "holds no ViT of DeiT, DINO or MoCo v3"),
        (without("cls_token"), "holds no ViT of DeiT, DINO or MoCo v3"),
        (without("blocks.1.norm2.bias"), "tensor blocks.1.norm2.bias is missing"),
        (lambda state: state | {"blocks.0.ls1.gamma": torch.ones(192)}, "tensor blocks.0.ls1.gamma does not belong"),
        (lambda state: state | {"pos_embed": torch.ones(1, 16, 192)}, "pos_embed has 16 places"),
        (lambda state: state | {"norm.weight": torch.ones(3)}, r"norm.weight has shape \(3,\), expected \(192,\)"),
        (lambda state: in_timms_names(network(3, dim=48)), "48 channels are no multiple of 64"),
    ],
)
def test_a_file_that_is_none_is_named_in_one_line(
    change: Callable[[State], Any], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(change(in_timms_names(network(3))), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=match) as raised:
        load_vit(tmp_path / "weights.pth")
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "weights.pth") in str(raised.value)
    assert not (tmp_path / "executed").exists()
