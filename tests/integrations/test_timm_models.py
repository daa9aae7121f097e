"""The family in timm: what timm's own tests of its models ask, on our registered variants.

timm's wheel comes without its tests; these ask the same of forward, backward, config and features.
"""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2

import halonet
from halonet.integrations.timm_models import PREFIX, TimmHaloNet
from halonet.models.variants import VARIANTS
from tests.models.test_halonet import revive

NAMES = [PREFIX + name for name in VARIANTS]
# One of each kind of stem, head and stage.
KINDS = ["halonet_h0", "halonet_h4", "halonet_h7_conv12", "halonet_h4_base128_patch4", "resnet_50"]
TINY = PREFIX + "halonet_tiny"
NARROW: dict[str, Any] = {"base_width": 8, "stem_width": 8, "heads": (1, 2, 2, 2)}
NARROW |= {"layers": (1, 1, 1, 1), "num_classes": 5}


def small_model(name: str = "halonet_tiny", **options: Any) -> TimmHaloNet:
    torch.manual_seed(0)
    final = {"final_width": 24} if VARIANTS[name].final_width else {}
    return revive(timm.create_model(PREFIX + name, **NARROW | final | options)).eval()


def test_names_are_uniform_and_shadow_none_of_timms() -> None:
    code = (
        "import warnings; warnings.simplefilter('error'); import timm; "
        "before = {name: timm.model_entrypoint(name) for name in timm.list_models()}; "
        "import halonet.integrations.timm_models; "
        "assert all(timm.model_entrypoint(name) is before[name] for name in before); "
        "print(*sorted(set(timm.list_models()) - set(before)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_config_names_what_is_there(name: str) -> None:
    model = timm.create_model(name, device="meta").eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == (
        VARIANTS[name.removeprefix(PREFIX)].parameters
    )
    cfg = model.default_cfg
    assert cfg["architecture"] == name
    assert cfg["input_size"] == (3, *(model.variant.image_size,) * 2)
    assert model.in_chans == 3
    assert model.num_classes == cfg["num_classes"] == 1000
    keys = model.state_dict().keys()
    assert f"{cfg['classifier']}.weight" in keys
    assert f"{cfg['first_conv']}.weight" in keys
    with torch.no_grad():
        maps = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
    assert maps.shape == (1, model.num_features, *cfg["pool_size"])
    pooled = model.forward_head(maps, pre_logits=True)
    assert pooled.shape == (1, model.head_hidden_size)


@pytest.mark.parametrize("name", KINDS)
def test_forward_is_ours(name: str) -> None:
    model = small_model(name)
    ours = halonet.HaloNet(model.variant, num_classes=5)
    ours.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 70, 97)
    expected = ours.eval()(images)
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model.forward_head(model.forward_features(images)), expected)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("name", KINDS)
def test_backward_reaches_every_parameter(name: str) -> None:
    model = small_model(name, drop_rate=0.1, drop_path_rate=0.1).train()
    assert model.drop_rate == model.variant.dropout == 0.1
    assert model.variant.stochastic_depth == 0.1
    logits = model(torch.randn(2, 3, 64, 64))
    logits.mean().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_classifier_and_pooling_are_reset() -> None:
    model = small_model()
    images = torch.randn(2, 3, 64, 96)
    assert inspect.signature(model.reset_classifier).parameters["global_pool"].default is None
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(images), pooled)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, model.num_features, 2, 3)
    assert small_model(num_classes=0, global_pool="")(images).shape == model(images).shape
    model.reset_classifier(7)
    assert model(images).shape == (2, 7, 2, 3)
    model.reset_classifier(7, "max")
    assert model.get_classifier() is model.classifier
    assert model(images).shape == (2, 7)
    maxima = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(3)
    found = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found, maxima)


def test_reset_keeps_device_type_and_mode() -> None:
    model = small_model().to(device="meta", dtype=torch.float64)
    model.reset_classifier(2)
    weight = model.get_classifier().weight
    assert (weight.device.type, weight.dtype) == ("meta", torch.float64)
    assert not any(module.training for module in model.modules())
    made = timm.create_model(TINY, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in made.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("name", KINDS)
def test_features_have_the_channels_and_strides_they_state(name: str) -> None:
    whole = small_model(name)
    images = torch.randn(2, 3, 75, 97)
    last, maps = whole.forward_intermediates(images)
    torch.testing.assert_close(last, whole.forward_features(images))
    model = small_model(name, features_only=True)
    found = model(images)
    info = model.feature_info
    assert info.reduction() == [4, 8, 16, 32] if "patch" in name else [2, 4, 8, 16, 32]
    assert len(found) == len(maps) == len(info.channels())
    for channels, stride, one, other in zip(
        info.channels(), info.reduction(), found, maps, strict=True
    ):
        assert one.shape == (2, channels, -(-75 // stride), -(-97 // stride))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("indices", [(1, 3), (-1,), (-3, -1), (0,), (2,)], ids=str)
@pytest.mark.parametrize("name", ["halonet_tiny", "halonet_h4_base128_patch4"])
def test_chosen_features_need_nothing_else(name: str, indices: tuple[int, ...]) -> None:
    images = torch.randn(2, 3, 64, 64)
    everything = small_model(name).forward_intermediates(images, intermediates_only=True)
    model = small_model(name, features_only=True, out_indices=indices)
    found = model(images)
    assert len(found) == len(indices)
    for index, actual in zip(indices, found, strict=True):
        torch.testing.assert_close(actual, everything[index])
    sum(actual.sum() for actual in model.train()(images)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    early = small_model(name).forward_intermediates(
        images, indices=indices, stop_early=True, intermediates_only=True
    )
    torch.testing.assert_close(early, found)


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx"])
def test_timms_other_feature_wrappers(feature_cls: str) -> None:
    images = torch.randn(1, 3, 64, 64)
    expected = small_model(features_only=True)(images)
    found = small_model(features_only=True, feature_cls=feature_cls)(images)
    found = list(found.values()) if isinstance(found, dict) else found
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_pruned_in_the_head_alone() -> None:
    images = torch.randn(1, 3, 64, 64)
    model = small_model("halonet_h4")
    expected = model(images)
    model.prune_intermediate_layers([4], prune_head=False)
    torch.testing.assert_close(model(images), expected)
    assert model.prune_intermediate_layers([-2]) == [3]
    assert model(images).shape == (1, model.num_features, 4, 4)


def test_stopping_early_gives_the_last_map_that_was_made() -> None:
    model = small_model("halonet_h4")
    last, maps = model.forward_intermediates(torch.randn(1, 3, 64, 64), [0, 2], stop_early=True)
    assert last is maps[1]
    last, maps = model.forward_intermediates(torch.randn(1, 3, 64, 64), [-1], stop_early=True)
    assert last.shape[1] == model.num_features != maps[0].shape[1]


def test_parameter_groups() -> None:
    model = small_model(layers=(1, 2, 1, 1), final_width=12)
    fine = group_parameters(model, model.group_matcher(coarse=False))
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(fine) == 1 + 5 + 1  # the stem, five bottlenecks, the rest
    assert len(coarse) == 1 + 4 + 1
    names = {name for name, _ in model.named_parameters()}
    tables = {name for name in names if name.endswith(("row_table", "column_table"))}
    assert model.no_weight_decay() == tables
    assert len(tables) == 4  # of two stages with attention
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    decayed = {
        id(parameter)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    assert decayed.isdisjoint(id(model.get_parameter(name)) for name in model.no_weight_decay())


def test_data_configuration() -> None:
    model = timm.create_model(PREFIX + "halonet_h4", device="meta")
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, 384, 384)
    assert (config["crop_pct"], config["interpolation"]) == (0.95, "bicubic")
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    from PIL import Image

    pixels = create_transform(**config, is_training=False)(Image.new("RGB", (500, 400)))
    assert pixels.shape == (3, 384, 384)


def test_weights_go_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    images = torch.randn(2, 3, 64, 64)
    model = small_model()
    halonet.save_model(model, path)
    ours = halonet.load_model(path).eval()
    assert type(ours) is halonet.HaloNet
    torch.testing.assert_close(ours(images), model(images))
    halonet.save_model(ours, path)
    overlay = {"file": str(path), "num_classes": 5}
    for options in (
        {"checkpoint_path": str(path)},
        {"pretrained": True, "pretrained_cfg_overlay": overlay},
    ):
        again = timm.create_model(TINY, **NARROW, **options).eval()
        torch.testing.assert_close(again(images), model(images))
    changed = timm.create_model(
        TINY,
        **NARROW | {"num_classes": 7, "block_size": 8, "halo_size": 1},
        in_chans=1,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
    )
    assert changed(images[:, :1]).shape == (2, 7)
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(TINY, pretrained=True)


def test_img_size_sets_the_size_of_absolute_positions() -> None:
    model = small_model(position="absolute", img_size=(64, 64))
    assert model.variant.image_size == 64
    spatial = model.stages[3][0].spatial
    assert len(spatial.absolute_rows) == len(spatial.absolute_columns) == 64 // 16
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_absolute_positions_are_resampled_for_another_size(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = small_model(position="absolute", img_size=96)
    halonet.save_model(model, path)
    overlay = {"file": str(path), "num_classes": 5}
    options = {"position": "absolute", "img_size": 64, "pretrained_cfg_overlay": overlay}
    loaded = timm.create_model(TINY, pretrained=True, **NARROW, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(images), model(images))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output_stride": 16}, ValueError, "output_stride must be 32, .*; got 16"),
        ({"global_pool": "catavgmax"}, ValueError, "global_pool must be one of .* got 'catavgmax'"),
        ({"img_size": (64, 32)}, ValueError, "img_size must be one positive side .* got"),
        ({"not_an_option": 1}, TypeError, "takes no option 'not_an_option'"),
        ({"drop_rate": 1.5}, ValueError, "dropout must be from 0 to below 1, got 1.5"),
        ({"num_classes": -1}, ValueError, "num_classes must be 0 or more, got -1"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        timm.create_model(TINY, device="meta", **options)


def test_bad_output_format_is_named() -> None:
    with pytest.raises(ValueError, match="output_fmt must be NCHW, got NLC"):
        small_model().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")
