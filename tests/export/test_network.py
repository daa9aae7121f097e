"""Whole models in ONNX: the logits are the model's, at every size and batch."""

from typing import Any

import onnx
import pytest
import torch

import halonet
from halonet.export.check import relative_difference
from halonet.export.description import describe
from halonet.export.onnx_classifier import open_session
from halonet.export.onnx_file import write_onnx
from tests.models.test_halonet import revive

# Primes, smaller than a block at every stride, a strip.
SIZES = ((32, 32), (32, 640), (33, 47), (61, 37), (97, 131), (113, 89), (64, 96), (199, 72))
BATCHES = (1, 2, 5)
NARROW: dict[str, Any] = {
    "num_classes": 7,
    "layers": (1, 1, 1, 1),
    "base_width": 8,
    "stem_width": 8,
    "heads": (1, 2, 2, 2),
}
ATTENTION = {**NARROW, "spatial": ("attention",) * 4}
MIXED = {**NARROW, "spatial": ("attention", "convolution", "attention", "convolution")}
MODELS = {
    "tiny": ("halonet_tiny", {}),
    "h1": ("halonet_h1", {**NARROW, "layers": (1, 2, 2, 1)}),
    "h3": ("halonet_h3", {**NARROW, "final_width": 12}),
    "halonet_50": ("halonet_50", {**NARROW, "heads": (1, 1, 2, 4)}),
    "conv12": ("halonet_h4_base128_conv12", NARROW),
    "patch_stem": ("halonet_h4_base128_patch4", NARROW),
    "h7_conv1": ("halonet_h7_conv1", NARROW),
    "detection": ("resnet_50_se_halo8", NARROW),
    "resnet": ("resnet_50_se", NARROW),
    "convolution_after_attention": ("halonet_tiny", {**MIXED, "squeeze_excitation": True}),
    "absolute": ("halonet_tiny", {**ATTENTION, "position": "absolute"}),
    "no_position": ("halonet_tiny", {**ATTENTION, "position": "none"}),
    "sasa": ("halonet_tiny", {**ATTENTION, "kernel_size": 3}),
    "padding_counts": ("halonet_tiny", {**ATTENTION, "mask_padding": False, "activation": "gelu"}),
    "widths": ("halonet_tiny", {**ATTENTION, "value_ratio": 2.0, "query_key_ratio": 2.0}),
    "grey": ("halonet_tiny", {**NARROW, "in_channels": 1}),
    "no_classes": ("halonet_tiny", {**NARROW, "num_classes": 0}),
}


def make_model(name: str, **options: Any) -> halonet.HaloNet:
    torch.manual_seed(0)
    return revive(halonet.create_model(name, **options)).eval()


def write(model, path, *, size=None, batch=None, precision="float32") -> None:
    description = describe(model, precision=precision, with_preprocessing=False, command="test")
    write_onnx(model.fuse(), path, description, size=size, batch=batch)


# timm's, with what is in their layers.
TIMM_MODELS = {
    "halonet26t": ((61, 37), (32, 640)),  # stride 2 in attention
    "eca_halonext26ts": ((33, 47),),  # gates of neighbouring channels, grouped convolutions
    "haloregnetz_b": ((61, 37),),  # blocks of 7, pooling after attention, squeeze and excitation
    "lamhalobotnet50ts_256": ((64, 64),),  # lambda layers, global attention of one map size
}


def make_timm_model(name: str) -> Any:
    """With blocks that add little to their shortcuts: full random residuals are chaotic."""
    torch.manual_seed(0)
    model: Any = revive(halonet.create_model(name, num_classes=7, image_size=64)).eval()
    for path, module in model.named_modules():
        if path.endswith("conv3_1x1.bn"):
            module.weight.data.mul_(0.2)
    return model


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_logits_are_those_of_timms_models(name, tmp_path) -> None:
    model, path = make_timm_model(name), tmp_path / "model.onnx"
    report = halonet.export_model(model, path)
    only = model.only_size
    assert only == ((64, 64) if name == "lamhalobotnet50ts_256" else None)
    assert max(report.differences.values()) <= 3e-6
    assert len(report.differences) == (2 if only else 6)
    onnx.checker.check_model(path, full_check=True)
    session = open_session(path)
    for height, width in TIMM_MODELS[name]:
        images = torch.randn(3, 3, height, width)
        with torch.inference_mode():
            expected = model(images)
        (found,) = session.run(None, {"images": images.numpy()})
        assert relative_difference(torch.from_numpy(found), expected) <= 3e-6, (height, width)


@pytest.mark.parametrize("case", MODELS)
def test_logits_are_the_models(case, tmp_path) -> None:
    name, options = MODELS[case]
    model, path = make_model(name, **options), tmp_path / "model.onnx"
    write(model, path)
    onnx.checker.check_model(path, full_check=True)
    session = open_session(path)
    numbers = torch.Generator().manual_seed(0)
    for height, width in SIZES:
        for batch in BATCHES:
            images = torch.randn(batch, model.in_channels, height, width, generator=numbers)
            with torch.inference_mode():
                expected = model(images)
            (found,) = session.run(None, {"images": images.numpy()})
            difference = relative_difference(torch.from_numpy(found), expected)
            assert difference <= 3e-6, (height, width, batch)


def test_one_size_and_batch(tmp_path) -> None:
    model, path = make_model("halonet_tiny"), tmp_path / "model.onnx"
    write(model, path, size=(70, 45), batch=3)
    (wanted,) = open_session(path).get_inputs()
    assert wanted.shape == [3, 3, 70, 45]
    images = torch.randn(3, 3, 70, 45)
    (found,) = open_session(path).run(None, {"images": images.numpy()})
    with torch.inference_mode():
        assert relative_difference(torch.from_numpy(found), model(images)) <= 3e-6


def test_half_precision_is_half_the_size(tmp_path) -> None:
    model = make_model("halonet_tiny")
    for precision in ("float32", "float16"):
        write(model, tmp_path / precision, precision=precision)
    sizes = [(tmp_path / precision).stat().st_size for precision in ("float32", "float16")]
    assert sizes[1] < 0.52 * sizes[0]
    images = torch.randn(2, 3, 97, 131)
    (found,) = open_session(tmp_path / "float16").run(None, {"images": images.numpy()})
    with torch.inference_mode():
        assert relative_difference(torch.from_numpy(found), model(images)) <= 2e-3


def test_a_layer_that_is_unknown_is_named(tmp_path) -> None:
    model = make_model("halonet_tiny", **NARROW)
    bottleneck = model.stages[0][0]
    bottleneck.activation = torch.nn.Tanh()
    with pytest.raises(ValueError, match=r"can't export the activation Tanh\(\)"):
        write(model, tmp_path / "model.onnx")


def test_sizes_that_a_model_does_not_take_are_refused(tmp_path) -> None:
    model: Any = halonet.create_model("halo2botnet50ts_256", num_classes=2, image_size=64)
    with pytest.raises(
        ValueError, match=r"size must be \(64, 64\), the model's only one, got \(64"
    ):
        halonet.export_model(model, tmp_path / "model.onnx", size=(64, 96))
    with pytest.raises(ValueError, match="model is fused already"):
        halonet.export_model(model.fuse(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
