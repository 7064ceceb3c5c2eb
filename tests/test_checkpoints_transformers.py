import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
import transformers
from torch import Tensor

from groupvit.checkpoints import load, names, native
from groupvit.checkpoints import transformers as layout
from groupvit.errors import InputError
from groupvit.models import (
    RELEASE,
    GroupViT,
    ImageEncoderConfig,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    build_model,
    with_stages,
)
from groupvit.text.tokenizer import Tokenizer

from_pretrained: Any = transformers.GroupViTModel.from_pretrained
SMALL = replace(
    RELEASE,
    image=ImageEncoderConfig(
        image_size=32, patch_size=8, dim=48, heads=3, mlp_ratio=2.0, stages=(Stage(2, 6, 6), Stage(1, 4, 3), Stage(1))
    ),
    text=TextEncoderConfig(width=32, heads=2, layers=2, context_length=8, vocab_size=60),
    embed_dim=16,
    projector_dim=24,
)
PLAIN = with_stages(SMALL, Stage(3))
ONE_STAGE = with_stages(SMALL, Stage(2, 6, 3), Stage(1))
APART = with_stages(SMALL, Stage(1, 6, 6), Stage(1), Stage(1, 4, 4))
CONFIGS = {
    "2-stage": SMALL,
    "1-stage": ONE_STAGE,
    "plain ViT": PLAIN,
    "a stage without grouping between": APART,
    "one temperature": replace(SMALL, multi_label_scale=False),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    layout.save(tmp_path / "model", build_model(SMALL), SMALL)
    return tmp_path / "model"


def bits(model: GroupViT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back_changes_no_bit_and_keeps_the_configuration(config: ModelConfig, tmp_path: Path) -> None:
    model = build_model(config)
    if config.multi_label_scale:
        torch.nn.init.normal_(model.multi_label_logit_scale)
    layout.save(tmp_path, model, config)
    loaded, loaded_config = layout.load(tmp_path)
    assert bits(loaded) == bits(model)
    assert loaded_config == config
    assert not loaded.training
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_their_processor_gives_texts_and_photos_as_our_own(tmp_path: Path) -> None:
    config = replace(SMALL, text=replace(SMALL.text, context_length=12, vocab_size=49408))
    layout.save(tmp_path, build_model(config), config)
    processor: Any = transformers.AutoProcessor.from_pretrained(tmp_path)
    texts = ["a photo of a cat.", "two dogs, it's  raining", "dog " * 50, "fire_hydrant", ""]
    photo = skimage.data.chelsea()
    given = processor(text=texts, images=photo, return_tensors="pt", padding="max_length", truncation=True)
    ours = Tokenizer(12)(texts)
    for row, mask, reference in zip(given["input_ids"], given["attention_mask"], ours, strict=True):
        length = int(mask.sum())
        assert torch.equal(row[:length], reference[:length])
        assert not reference[length:].any()
    assert given["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_transformers_finds_every_tensor_and_no_other(config: ModelConfig, tmp_path: Path) -> None:
    model = build_model(config)
    layout.save(tmp_path, model, config)
    port, info = from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    theirs = port.state_dict()
    assert len(theirs) == len(layout.encode(model.state_dict())) - config.multi_label_scale
    assert all(
        torch.equal(theirs[name], tensor)
        for name, tensor in layout.encode(model.state_dict()).items()
        if name in theirs
    )


def test_what_transformers_wrote_is_read(tmp_path: Path) -> None:
    document = layout.config_document(SMALL)
    port = transformers.GroupViTModel(transformers.GroupViTConfig(**document))
    port.save_pretrained(tmp_path)
    loaded, config = layout.load(tmp_path)
    assert config == replace(SMALL, multi_label_scale=False)
    assert all(
        torch.equal(port.state_dict()[name], tensor) for name, tensor in layout.encode(loaded.state_dict()).items()
    )


def test_the_image_processor_has_our_normalisation(folder: Path) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == native.IMAGE_NORMALISATION["mean"]
    assert processor.crop_size["height"] == SMALL.image.image_size


def test_fields_that_the_file_leaves_out_are_the_published_model_s() -> None:
    config = layout.read_config({"model_type": "groupvit"}, True, Path("config.json"))
    assert config == RELEASE
    assert (
        layout.read_config(
            {"text_config": None, "text_config_dict": {"num_hidden_layers": 3}}, True, Path("a")
        ).text.layers
        == 3
    )


def test_the_default_configuration_of_transformers_is_the_release() -> None:
    document = transformers.GroupViTConfig().to_dict()
    assert layout.read_config(json.loads(json.dumps(document)), True, Path("config.json")) == RELEASE


def test_every_name_goes_there_and_back() -> None:
    for name in build_model(SMALL).state_dict():
        theirs = names.translate(name, layout.TABLE)
        assert theirs is not None
        assert names.translate(theirs, names.inverse(layout.TABLE)) == name


def test_the_constant_that_old_versions_saved_is_ignored(folder: Path) -> None:
    state, metadata = native.read_safetensors(folder / native.WEIGHTS)
    before = bits(layout.load(folder)[0])
    state["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    native.write_safetensors(folder / native.WEIGHTS, state, metadata)
    assert bits(layout.load(folder)[0]) == before


def test_pickled_weights_are_read_where_there_are_no_others(folder: Path) -> None:
    before = bits(layout.load(folder)[0])
    state, _ = native.read_safetensors(folder / native.WEIGHTS)
    torch.save(state, folder / layout.PICKLE)
    (folder / native.WEIGHTS).unlink()
    after = bits(layout.load(folder)[0])
    assert after == {name: value for name, value in before.items() if name != "multi_label_logit_scale"}


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"stem": "conv"}, "image.stem"),
        ({"assign_logits": "dot"}, "image.assign_logits"),
        ({"group_residual": False}, "image.group_residual"),
        ({"pre_assign_attention": False}, "image.pre_assign_attention"),
        ({"project_group_tokens": False}, "image.project_group_tokens"),
        ({"image_size": 33}, "image.image_size"),
    ],
    ids=str,
)
def test_an_option_that_the_layout_cannot_express_is_named(
    changes: dict[str, Any], option: str, tmp_path: Path
) -> None:
    config = replace(SMALL, image=replace(SMALL.image, **changes))
    with pytest.raises(InputError, match=f"the transformers layout cannot express {option}"):
        layout.save(tmp_path, build_model(config), config)
    assert not os.listdir(tmp_path)


def test_stages_that_transformers_cannot_run_are_named(tmp_path: Path) -> None:
    config = with_stages(SMALL, Stage(1, 6, 5), Stage(1, 4, 4))
    with pytest.raises(InputError, match="transformers cannot run 6 group tokens that make 5 groups"):
        layout.save(tmp_path, build_model(config), config)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("vision_model.layernorm.weight", None, "tensor vision_model.layernorm.weight is missing"),
        ("text_model.encoder.layers.0.self_attn.k_proj.bias", None, "layers.0.self_attn.k_proj.bias is missing"),
        ("head.weight", torch.zeros(1), "tensor head.weight does not belong"),
        ("visual_projection.3.bias", torch.zeros(17), r"visual_projection.3.bias has shape \(17,\), expected \(16,\)"),
        ("logit_scale", torch.tensor(1), "tensor logit_scale has dtype int64"),
    ],
)
def test_a_deviating_tensor_is_named_as_in_the_file(
    folder: Path, name: str, tensor: Tensor | None, complaint: str
) -> None:
    state, metadata = native.read_safetensors(folder / native.WEIGHTS)
    changed = {key: value for key, value in (state | {name: tensor}).items() if value is not None}
    native.write_safetensors(folder / native.WEIGHTS, changed, metadata)
    with pytest.raises(InputError, match=complaint):
        layout.load(folder)


@pytest.mark.parametrize(
    ("part", "name", "value", "complaint"),
    [
        ("vision_config", "layer_norm_eps", 1e-6, "vision_config.layer_norm_eps = 1e-06 is not supported"),
        ("vision_config", "hidden_act", "relu", "vision_config.hidden_act = 'relu' is not supported"),
        ("vision_config", "assign_mlp_ratio", [1, 2], "vision_config.assign_mlp_ratio"),
        ("text_config", "intermediate_size", 7, "text_config.intermediate_size = 7"),
        ("vision_config", "depths", [1], "no configuration of a GroupViT"),
        ("vision_config", "depths", 3, "no configuration of a GroupViT"),
        ("vision_config", "hidden_size", "48", "no configuration of a GroupViT"),
        ("vision_config", "hidden_size", 0, "no configuration of a GroupViT"),
        ("vision_config", "patch_size", 0, "no configuration of a GroupViT"),
        ("vision_config", "intermediate_size", math.nan, "no configuration of a GroupViT"),
        ("vision_config", "intermediate_size", math.inf, "no configuration of a GroupViT"),
        (
            "vision_config",
            "image_size",
            37,
            r"config\.json is no configuration .* cannot express image.image_size = 37",
        ),
        ("vision_config", "image_size", [32, 32], "field model.image.image_size"),
        ("text_config", "vocab_size", -5, "no model can be built|vocab"),
    ],
)
def test_an_unusable_configuration_is_named(folder: Path, part: str, name: str, value: Any, complaint: str) -> None:
    document = json.loads((folder / "config.json").read_text())
    document[part][name] = value
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=complaint):
        layout.load(folder)


@pytest.mark.parametrize("text", ["{", "[]", '"groupvit"', "", "[" * 200_000], ids=range(5))
def test_a_config_that_is_no_json_object_is_an_error(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        layout.load(folder)


def test_a_second_temperature_that_is_no_number_is_an_error(folder: Path) -> None:
    state, metadata = native.read_safetensors(folder / native.WEIGHTS)
    native.write_safetensors(folder / native.WEIGHTS, state, metadata | {"multi_label_logit_scale": "warm"})
    with pytest.raises(InputError, match="multi_label_logit_scale = 'warm'"):
        layout.load(folder)


def shard(folder: Path, count: int = 3) -> Path:
    """Split the weights of a folder as `transformers` does above a size."""
    state, metadata = native.read_safetensors(folder / native.WEIGHTS)
    (folder / native.WEIGHTS).unlink()
    listed = {name: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, name in enumerate(state)}
    for file in set(listed.values()):
        part = {name: tensor for name, tensor in state.items() if listed[name] == file}
        native.write_safetensors(folder / file, part, metadata)
    native.write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": listed})
    return folder / "model.safetensors.index.json"


def test_weights_in_several_files_are_read_as_those_in_one(folder: Path) -> None:
    whole = bits(load(folder)[0])
    index = shard(folder)
    for path in (folder, index, folder / "model-00001-of-00003.safetensors"):
        assert bits(load(path)[0]) == whole
    theirs = from_pretrained(folder).state_dict()
    ours = layout.encode(load(folder)[0].state_dict())
    assert len(theirs) > 100
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items() if name in ours)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(),
            "00002-of-00003.safetensors does not exist",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
            "index.json lists no files beside it",
        ),
        (
            lambda folder: native.write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "../a"}}),
            "index.json lists no files beside it",
        ),
        (
            lambda folder: native.write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": 1}}),
            "index.json lists no files beside it",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").unlink(),
            "model.safetensors does not exist, nor model.safetensors.index.json, which lists its parts",
        ),
        (lambda folder: (folder / "model-00003-of-00003.safetensors").write_bytes(b"{"), "00003.*was cut off"),
    ],
)
def test_what_is_wrong_with_several_files_is_named(change: Any, said: str, folder: Path) -> None:
    shard(folder)
    change(folder)
    with pytest.raises(InputError, match=said):
        load(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "release.pth", "config.json", "model.safetensors.index.json"],
)
@pytest.mark.parametrize("of_folder", [True, False])
def test_a_pointer_of_git_lfs_says_how_to_get_the_weights(name: str, of_folder: bool, folder: Path) -> None:
    (folder / native.WEIGHTS).unlink()
    (folder / name).write_bytes(POINTER)
    path = folder if of_folder and name != "release.pth" else folder / name
    with pytest.raises(InputError, match=rf"{name} is a pointer of git-lfs.*run `git lfs pull`"):
        load(path)


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin"])
def test_a_file_of_the_folder_stands_for_it(name: str, folder: Path) -> None:
    state, _ = native.read_safetensors(folder / native.WEIGHTS)
    torch.save(state, folder / layout.PICKLE)
    (folder / native.WEIGHTS).unlink()
    assert load(folder / name)[1] == layout.load(folder)[1]


@pytest.mark.parametrize("name", ["pytorch_model-00001-of-00002.bin", "model.fp16.safetensors"])
def test_weights_under_another_name_are_told(name: str, folder: Path) -> None:
    (folder / native.WEIGHTS).rename(folder / name)
    with pytest.raises(InputError, match=rf"model.safetensors does not exist \(of {name} it cannot be read\)"):
        layout.load(folder)


def test_a_pointer_among_several_files_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").write_bytes(POINTER)
    with pytest.raises(InputError, match=r"00002-of-00003.safetensors is a pointer of git-lfs"):
        load(folder)
