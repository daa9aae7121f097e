"""Backbones: the paper's counts, shapes at any size, and what starts from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.ops import FrozenBatchNorm2d

import halonet
from halonet.detection.backbone import make_backbone
from halonet.detection.detector import create_detector, load_detector, save_detector
from halonet.layers.bottleneck import SqueezeExcitation
from halonet.models.pretrained import interpolate_table
from tests.detection.pictures import NARROW
from tests.models.test_halonet import revive


@pytest.mark.parametrize(
    ("name", "parameters", "attention"),
    [
        ("resnet_50", 25_557_032, 0),
        ("resnet_50_se", 25_875_648, 0),
        ("resnet_50_se_halo8", 21_161_088, 3),
        ("resnet_50_se_halo32", 21_170_304, 3),
        ("resnet_101_se", 45_151_200, 0),
        ("resnet_101_se_halo8", 40_436_640, 3),
    ],
)
def test_the_papers_rows(name: str, parameters: int, attention: int) -> None:
    with torch.device("meta"):
        model = halonet.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    layers = [one for one in model.modules() if isinstance(one, halonet.HaloAttention)]
    assert len(layers) == attention
    assert all(one in list(model.stages[3].modules()) for one in layers)
    assert [(one.stride, one.heads, one.halo_size) for one in layers] == [
        (2, 8, 3), (1, 8, 3), (1, 8, 3),
    ][:attention]  # fmt: skip
    assert {one.block_size for one in layers} <= {32 if name.endswith("32") else 8}
    gates = [one for one in model.modules() if isinstance(one, SqueezeExcitation)]
    assert len(gates) == (0 if name == "resnet_50" else sum(model.variant.layers))
    for gate in gates:
        assert gate.squeeze.out_channels == gate.squeeze.in_channels // 8
        assert isinstance(gate.activation, torch.nn.ReLU)


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (96, 40)], ids=str)
def test_levels_have_their_strides_at_any_size(size: tuple[int, int]) -> None:
    backbone = make_backbone("resnet_50_se_halo8", pyramid_channels=8, **NARROW).eval()
    levels = backbone(torch.randn(2, 3, *size))
    assert list(levels) == ["4", "8", "16", "32", "pool"]
    for name, level in levels.items():
        stride = 64 if name == "pool" else int(name)
        assert level.shape == (2, 8, *(-(-side // stride) for side in size))


@pytest.mark.parametrize("name", halonet.list_models())
def test_every_variant_gives_levels(name: str) -> None:
    backbone = make_backbone(name, pyramid_channels=8, **NARROW)
    levels = backbone(torch.randn(1, 3, 65, 97))
    sum(level.square().mean() for level in levels.values()).backward()
    assert [name for name, one in backbone.named_parameters() if one.grad is None] == []


def test_starts_from_a_checkpoint_of_another_block(tmp_path: Path) -> None:
    trained = revive(halonet.create_model("resnet_50_se_halo8", num_classes=5, **NARROW))
    trained.preprocessing = halonet.Preprocessing(96, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    halonet.save_model(trained, tmp_path / "trained.safetensors")
    backbone = make_backbone("resnet_50_se_halo32", init=tmp_path / "trained.safetensors", **NARROW)
    table = trained.stages[3][0].spatial.row_table.detach()
    found = backbone.body.stages[3][0].spatial.row_table
    assert torch.equal(found, interpolate_table(table, 2 * 35 - 1))
    assert torch.equal(backbone.body.stem[0].weight, trained.stem[0].weight)
    assert backbone.body.preprocessing.mean == (0.1, 0.2, 0.3)
    assert not any("classifier" in name for name, _ in backbone.named_parameters())


def test_frozen_parts_stay_and_give_the_same_maps(tmp_path: Path) -> None:
    trained = revive(halonet.create_model("resnet_50_se_halo8", **NARROW))
    path = tmp_path / "trained.safetensors"
    halonet.save_model(trained, path)
    plain = make_backbone("resnet_50_se_halo8", init=path, **NARROW).eval()
    frozen = make_backbone("resnet_50_se_halo8", init=path, frozen_norms=True, **NARROW).train()
    images = torch.randn(2, 3, 70, 50)
    torch.testing.assert_close(frozen.body.feature_maps(images), plain.body.feature_maps(images))
    assert not any(isinstance(one, torch.nn.BatchNorm2d) for one in frozen.modules())

    partly = make_backbone("resnet_50_se_halo8", init=path, trainable_stages=2, **NARROW)
    learning = {name.split(".fpn")[0] for name, one in partly.body.named_parameters()
                if one.requires_grad}  # fmt: skip
    assert {name[: len("stages.0")] for name in learning} == {"stages.2", "stages.3"}
    assert isinstance(partly.body.stem[1], FrozenBatchNorm2d)
    assert isinstance(partly.body.stages[2][0].reduce_norm, torch.nn.BatchNorm2d)


def test_weights_of_another_function_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trained.safetensors"
    halonet.save_model(halonet.create_model("resnet_50_se_halo8", **NARROW), path)
    with pytest.raises(ValueError, match="activation is relu there, silu here"):
        make_backbone("resnet_50_se_halo8", init=path, activation="silu", **NARROW)
    with pytest.raises(ValueError, match="mask_padding is True there, False here"):
        make_backbone("resnet_50_se_halo8", init=path, mask_padding=False, **NARROW)


def test_frozen_norms_have_the_keys_of_saved_detectors(tmp_path: Path) -> None:
    path = tmp_path / "trained.safetensors"
    trained = revive(halonet.create_model("resnet_50_se_halo8", **NARROW))
    halonet.save_model(trained, path)
    frozen = make_backbone("resnet_50_se_halo8", init=path, frozen_norms=True, **NARROW).body
    ours = {name: value for name, value in trained.state_dict().items()
            if not name.endswith("num_batches_tracked") and "classifier" not in name}  # fmt: skip
    assert frozen.state_dict().keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in frozen.state_dict().items())
    assert not any("norm" in name for name, _ in frozen.named_parameters())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    halonet.save_model(halonet.create_model("resnet_50", **NARROW), path)
    with pytest.raises(ValueError, match=r"is a resnet_50 and doesn't fit resnet_50_se_halo8: sp"):
        make_backbone("resnet_50_se_halo8", init=path, **NARROW)
    with pytest.raises(ValueError, match=r"model must be one of .* got 'resnet_18'"):
        make_backbone("resnet_18")
    with pytest.raises(ValueError, match="frozen_norms needs init"):
        make_backbone("resnet_50_se", frozen_norms=True)
    with pytest.raises(ValueError, match="trainable_stages below 5 needs init"):
        make_backbone("resnet_50_se", trainable_stages=3)
    with pytest.raises(ValueError, match="trainable_stages must be from 0 to 5, got 6"):
        make_backbone("resnet_50", init=path, trainable_stages=6, **NARROW)


def test_timms_models_are_backbones_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "halonet26t.safetensors"
    theirs = timm.create_model("halonet26t")
    save_file(theirs.state_dict(), weights)
    small: dict[str, Any] = {"pyramid_channels": 16, "box_channels": 32, "mask_channels": 0}
    detector = create_detector(
        "halonet26t", num_classes=2, pretrained=weights, image_size=96, frozen_norms=True, **small
    ).eval()
    body = detector.backbone.body
    held = theirs.state_dict()
    for name, parameter in body.named_parameters():
        assert torch.equal(parameter, held[name]), name
    assert detector.transform.image_mean == list(theirs.pretrained_cfg["mean"])
    path = tmp_path / "detector.safetensors"
    save_detector(detector, path)
    again = load_detector(path).eval()
    image = torch.rand(3, 70, 96)
    with torch.inference_mode():
        maps = detector.backbone(image[None])
        for other in (again, detector.fuse()):
            for name, found in other.backbone(image[None]).items():
                assert (found - maps[name]).abs().max() < 2e-5 * maps[name].abs().max()
    assert again.backbone.body.variant == body.variant
    with pytest.raises(ValueError, match="lamhalobotnet50ts_256 can't be a backbone: its last"):
        make_backbone("lamhalobotnet50ts_256")
