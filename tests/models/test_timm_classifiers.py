"""timm's HaloNets as classifiers of ours: names, weights, files, parts and feature maps."""

import copy
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

import halonet
from halonet.classification.predict import predict
from halonet.data.pixels import prepare_image
from halonet.integrations.hub import HubHaloNet
from halonet.models.creation import find_variant
from halonet.models.flops import count_flops
from halonet.models.timm_variants import TIMM_CHECKPOINTS

SEVEN = pytest.mark.parametrize("name", TIMM_CHECKPOINTS)
SIZE = 64  # pixels; the blocks are 8, that of haloregnetz_b is 7


def make_timms(name: str, size: int | None = None) -> nn.Module:
    """timm's model with weights and statistics that hide nothing."""
    torch.manual_seed(1)
    checkpoint = TIMM_CHECKPOINTS[name]
    size = size or checkpoint.image_size
    fixed: dict[str, Any] = {} if checkpoint.any_size else {"img_size": size}
    return settle(timm.create_model(name, **fixed), draw_images(4, size))


def settle(model: nn.Module, images: Tensor) -> nn.Module:
    """Random norms with the statistics of some images, in eval mode.

    Each block adds little to its shortcut, as in a trained model: a random network of full
    residuals is chaotic, and makes any rounding large.
    """
    norms = {name: one for name, one in model.named_modules() if isinstance(one, nn.BatchNorm2d)}
    for name, norm in norms.items():
        largest = 0.3 if name.endswith("conv3_1x1.bn") else 1.5
        nn.init.uniform_(norm.weight, largest / 3, largest)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def draw_images(count: int, size: int) -> Tensor:
    """Soft shapes, normalized: what the statistics are of, and what the models see."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return (smooth - 0.5) / 0.25


def assert_same(logits: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert (logits - expected).abs().max() < tolerance * expected.abs().max()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of timm's weights of halonet26t."""
    path = tmp_path_factory.mktemp("timm") / "halonet26t.safetensors"
    save_file(make_timms("halonet26t").state_dict(), path)
    return path


@SEVEN
def test_predictions_of_a_photo_are_timms(name: str, tmp_path: Path) -> None:
    theirs = make_timms(name)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    model = halonet.create_model(name, pretrained=tmp_path / "weights.safetensors")
    halonet.save_model(model, tmp_path / "model.safetensors")
    model = halonet.load_model(tmp_path / "model.safetensors")
    photo = tmp_path / "photo.png"
    colors = (draw_images(1, 300)[0] * 0.25 + 0.5).clamp(0, 1)
    to_pil_image(colors[:, :, :257]).save(photo)
    transform: Any = create_transform(**resolve_data_config({}, model=theirs))
    with Image.open(photo) as image:
        pixels = transform(image)
    assert torch.allclose(prepare_image(str(photo), model.preprocessing), pixels, atol=1e-6)
    with torch.inference_mode():
        logits = theirs(pixels[None])
    ((_, found),) = predict(model.fuse(), [photo])
    expected = logits.softmax(1)[0]
    assert isinstance(found, Tensor)
    # Differences of the logits, which softmax leaves.
    assert (found.log() - expected.log()).abs().max() < 1e-4 * logits.abs().max()


@SEVEN
def test_files_copies_and_timm_take_the_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = halonet.create_model(name, num_classes=3, in_channels=1, image_size=SIZE)
    settle(model, draw_images(16, SIZE)[:, :1])
    model.class_names = ("a", "b", "c")
    path = tmp_path / "model.safetensors"
    halonet.save_model(model, path)
    images = draw_images(2, SIZE)[:, :1]
    with torch.inference_mode():
        logits = model(images)
        loaded = halonet.load_model(path).eval()
        for same in (loaded, copy.deepcopy(model)):
            assert_same(same(images), logits)
        # Folded norms round otherwise, in fifty layers one after the other.
        assert_same(model.fuse()(images), logits, tolerance=1e-4)
        HubHaloNet.from_model(loaded).save_pretrained(tmp_path / "hub")
        again = HubHaloNet.from_pretrained(tmp_path / "hub")
        assert_same(again(images), logits)
        assert (again.class_names, again.variant) == (model.class_names, model.variant)
        checkpoint = TIMM_CHECKPOINTS[name]
        fixed: dict[str, Any] = {} if checkpoint.any_size else {"img_size": SIZE}
        theirs = timm.create_model(
            name, num_classes=3, in_chans=1, checkpoint_path=str(path), **fixed
        )
        ours = halonet.replace_timm_layers(theirs).eval()
        assert_same(ours(images), logits)


@SEVEN
def test_table_of_sizes_parameters_and_flops_is_counted(name: str) -> None:
    checkpoint = TIMM_CHECKPOINTS[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    assert checkpoint.parameters == sum(one.numel() for one in model.parameters())
    stated: Any = model.pretrained_cfg
    assert (checkpoint.image_size, checkpoint.tag) == (stated["input_size"][1], stated["tag"])
    assert checkpoint.any_size != stated["fixed_input_size"]
    assert checkpoint.flops == count_flops(find_variant(name))


@SEVEN
def test_parts_cover_all_but_the_classifier_and_maps_are_as_stated(name: str) -> None:
    with torch.device("meta"):
        model = halonet.create_model(name, image_size=SIZE)
        assert isinstance(model, halonet.Classifier)
        maps = model.feature_maps(torch.empty(1, 3, SIZE, SIZE))
    held = {one for part in model.parts.values() for one in part.parameters()}
    rest = {one for one in model.parameters() if one not in held}
    assert rest == set(model.get_classifier().parameters())
    assert len(model.parts) == 6
    assert {stride: list(one.shape) for stride, one in maps.items()} == {
        stride: [1, channels, SIZE // stride, SIZE // stride]
        for stride, channels in model.feature_channels.items()
    }


@pytest.mark.parametrize(
    "name", ["halonet26t.a1h_in1k", "timm/halonet26t", "hf-hub:timm/halonet26t.a1h_in1k"]
)
def test_names_of_the_hub(name: str) -> None:
    assert find_variant(name) == find_variant("halonet26t")


def test_unknown_tag_and_option_are_named() -> None:
    with pytest.raises(ValueError, match=r"has the weights halonet26t\.a1h_in1k only, got"):
        halonet.create_model("halonet26t.c1_in1k")
    with pytest.raises(ValueError, match="block_size must be a positive multiple of stride"):
        halonet.create_model("halonet26t", block_size=7)
    with pytest.raises(ValueError, match="image_size of halo2botnet50ts_256 must be a multiple"):
        halonet.create_model("halo2botnet50ts_256", image_size=100)


def test_other_classes_and_channels_start_as_timm_has_it(weights: Path) -> None:
    model = halonet.create_model("halonet26t", pretrained=weights, num_classes=4, in_channels=1)
    assert isinstance(model, halonet.Classifier)
    assert not any(one.any() for one in model.get_classifier().parameters())
    theirs = timm.create_model(
        "halonet26t",
        pretrained=True,
        num_classes=4,
        in_chans=1,
        pretrained_cfg_overlay={"file": str(weights)},
    )
    held = model.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert name.startswith("head.fc") or torch.equal(held[name], tensor), name


def test_another_block_and_halo_interpolates_the_tables(weights: Path, tmp_path: Path) -> None:
    model = halonet.create_model("halonet26t", pretrained=weights).eval()
    halonet.save_model(model, tmp_path / "model.safetensors")
    changed = halonet.create_model(
        "halonet26t", pretrained=weights, block_size=4, halo_size=1
    ).eval()
    loaded = halonet.load_model(tmp_path / "model.safetensors", block_size=4, halo_size=1).eval()
    images = draw_images(1, SIZE)
    with torch.inference_mode():
        assert torch.equal(changed(images), loaded(images))
        assert not torch.allclose(changed(images), model(images), rtol=0.01)
    table = model.stages[3][0].self_attn.tables()[0]
    shorter = changed.stages[3][0].self_attn.tables()[0]
    assert torch.equal(shorter[[0, 4, 8]], table[[0, 9, 18]])
    again = halonet.create_model("halonet26t", block_size=8, halo_size=2, num_classes=1000)
    report = halonet.load_weights(again, tmp_path / "model.safetensors")
    assert report.changed_fields == ("block_size", "halo_size")
    with torch.inference_mode():
        assert torch.equal(again.eval()(images), model(images))


def test_images_of_another_size_are_refused_where_the_table_has_one() -> None:
    model = halonet.create_model("halo2botnet50ts_256", image_size=SIZE)
    with pytest.raises(ValueError, match="must have 64 x 64 pixels, for which its last"):
        model(torch.zeros(1, 3, SIZE, SIZE + 32))


def test_weights_that_are_not_these_are_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="doesn't fit halonet50ts: missing"):
        halonet.create_model("halonet50ts", pretrained=weights)
    with pytest.raises(FileNotFoundError, match="no file of weights at"):
        halonet.create_model("halonet50ts", pretrained=tmp_path / "absent")
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can't be read as weights of timm's"):
        halonet.create_model("halonet50ts", pretrained=tmp_path / "broken.pth")
    tensors = dict(timm.models.load_state_dict(str(weights)))
    tensors["stem.conv1.conv.weight"][0] = float("nan")
    torch.save(tensors, tmp_path / "diverged.pth")
    with pytest.raises(ValueError, match=r"diverged\.pth has weights that are infinite or nan"):
        halonet.create_model("halonet26t", pretrained=tmp_path / "diverged.pth")
    ours = halonet.create_model("halonet_tiny", num_classes=2)
    halonet.save_model(ours, tmp_path / "ours.safetensors")
    theirs = halonet.create_model("halonet26t", num_classes=2)
    assert isinstance(theirs, halonet.Classifier)
    with pytest.raises(ValueError, match="is a halonet_tiny and doesn't fit halonet26t"):
        halonet.load_weights(theirs, tmp_path / "ours.safetensors")


def test_without_a_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(
        ConnectionError, match=r"can't fetch the weights halonet26t\.a1h_in1k"
    ) as it:
        halonet.create_model("halonet26t", pretrained=True)
    assert "name their file (pretrained PATH)" in str(it.value)
    assert "\n" not in str(it.value)


def test_timms_own_options_give_timms_own_model() -> None:
    with torch.device("meta"):
        model = halonet.create_model("halonet26t", features_only=True)
    assert not isinstance(model, halonet.Classifier)
    dropping = halonet.create_model("halonet26t", drop_rate=0.25)
    assert dropping.variant.dropout == dropping.head.drop.p == 0.25
