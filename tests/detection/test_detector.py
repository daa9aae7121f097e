"""The detector: any size, any batch, every loss finite, and back from a file as it was."""

from pathlib import Path

import pytest
import torch
from torchvision.models.detection import MaskRCNN

import halonet
from halonet.detection.detector import (
    DetectorDescription,
    create_detector,
    load_detector,
    save_detector,
    sum_losses,
)
from tests.detection.pictures import NARROW, make_target, small_detector
from tests.models.test_halonet import revive
from tests.models.test_metadata import field_paths, put, remove, rewrite

LOSS_NAMES = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"]
BOXES = [[4, 4, 24, 20], [30, 10, 50, 60]]


def images(count: int, size: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, size, size, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", halonet.list_models())
def test_every_variant_learns_and_detects(name: str) -> None:
    model = small_detector(name).train()
    losses = model(images(2), [make_target(64, BOXES), make_target(64, BOXES[:1])])
    sum_losses(losses).backward()
    assert set(losses) == set(LOSS_NAMES)
    assert [name for name, one in model.named_parameters() if one.grad is None] == []
    with torch.no_grad():
        (found,) = model.eval()([torch.rand(3, 45, 71)])
    assert found["masks"].shape == (len(found["boxes"]), 1, 45, 71)


@pytest.mark.parametrize("objects", [[[]], [BOXES], [[], []], [[], BOXES]], ids=str)
def test_losses_and_gradients_are_finite(objects: list) -> None:
    model = small_detector().train()
    losses = model(images(len(objects)), [make_target(64, boxes) for boxes in objects])
    sum_losses(losses).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_an_object_of_one_pixel_and_one_of_the_whole_image() -> None:
    model = small_detector().train()
    losses = model(images(1), [make_target(64, [[3, 3, 4, 4], [0, 0, 64, 64]])])
    sum_losses(losses).backward()
    assert all(one.grad.isfinite().all() for one in model.parameters())


def test_one_image_has_torchvisions_losses() -> None:
    model = small_detector().train()
    target = make_target(64, BOXES, seed=3)
    found = model(images(1), [target])
    model.transform._skip_resize = True  # it would draw a size at random
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = MaskRCNN.forward(model, images(1), [target])
    for name in LOSS_NAMES:
        torch.testing.assert_close(found[name], expected[name])


def test_a_loss_does_not_depend_on_the_batch() -> None:
    model = small_detector().train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()
    batch = images(3)
    targets = [make_target(64, boxes, seed=seed) for seed, boxes in enumerate([BOXES, [], BOXES])]
    sum_losses(model(batch, targets)).backward()
    together = [one.grad.clone() for one in model.parameters()]
    model.zero_grad()
    for image, target in zip(batch, targets, strict=True):
        (sum_losses(model([image], [target])) / 3).backward()
    for one, parameter in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, one, rtol=1e-4, atol=1e-6)


def test_samples_come_from_the_targets_seed_alone() -> None:
    model = small_detector(training_proposals=2000).train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()
    first = model(images(1), [make_target(64, BOXES, seed=1)])
    state = torch.get_rng_state()
    again = model(images(1), [make_target(64, BOXES, seed=1)])
    other = model(images(1), [make_target(64, BOXES, seed=2)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in LOSS_NAMES)
    assert not all(torch.equal(first[name], other[name]) for name in LOSS_NAMES)


@pytest.mark.parametrize("size", [(33, 40), (64, 64), (77, 133), (300, 90)], ids=str)
def test_detects_in_images_of_any_size(size: tuple[int, int]) -> None:
    model = small_detector().eval()
    image = torch.rand(3, *size)
    with torch.no_grad():
        (found,), (small,) = model([image]), model.detect([image])
    assert found["masks"].shape == (10, 1, *size)
    assert small["masks"].shape == (10, 1, 28, 28)
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(found[name], small[name])
    limits = torch.tensor([size[1], size[0]] * 2)
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= limits).all()
    assert set(found["labels"].tolist()) <= {1, 2}


def test_a_small_first_image_spoils_nothing() -> None:
    # torchvision guesses the strides from the first image, and keeps them.
    model = small_detector(image_size=33).eval()
    fresh = small_detector(image_size=33).eval()
    with torch.no_grad():
        model([torch.rand(3, 33, 33)])
        model.transform.min_size, fresh.transform.min_size = (64,), (64,)
        model.transform.max_size = fresh.transform.max_size = 64
        image = torch.rand(3, 64, 64)
        torch.testing.assert_close(model([image])[0]["boxes"], fresh([image])[0]["boxes"])
    assert model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    model = small_detector(model_options={"block_size": 4}).train()
    sum_losses(model(images(2), [make_target(64, BOXES)] * 2)).backward()
    model.class_names, model.category_ids = ("square", "bar"), (7, 3)
    save_detector(model.eval(), tmp_path / "model.safetensors")
    loaded = load_detector(tmp_path / "model.safetensors").eval()
    assert loaded.options == model.options
    assert loaded.backbone.body.variant == model.backbone.body.variant
    assert (loaded.class_names, loaded.category_ids) == (("square", "bar"), (7, 3))
    with torch.no_grad():
        (found,), (expected,) = loaded(images(1)), model(images(1))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_only_what_can_be_loaded_is_saved(tmp_path: Path) -> None:
    model = small_detector().eval()
    save_detector(torch.nn.DataParallel(model), tmp_path / "model.safetensors")
    assert load_detector(tmp_path).num_classes == model.num_classes
    with pytest.raises(ValueError, match=r"can't be saved: its tensors aren't .* of a fused"):
        save_detector(model.fuse(), tmp_path / "fused.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_comes_back_with_frozen_norms(tmp_path: Path) -> None:
    trained = revive(halonet.create_model("resnet_50_se_halo8", **NARROW))
    halonet.save_model(trained, tmp_path / "trained.safetensors")
    model = small_detector(
        init=tmp_path / "trained.safetensors", frozen_norms=True, trainable_stages=3
    ).eval()
    save_detector(model, tmp_path / "model.safetensors")
    loaded = load_detector(tmp_path / "model.safetensors").eval()
    assert [one.requires_grad for one in loaded.parameters()] == [
        one.requires_grad for one in model.parameters()
    ]
    with torch.no_grad():
        assert torch.equal(loaded(images(1))[0]["boxes"], model(images(1))[0]["boxes"])


def test_other_classes_and_limits(tmp_path: Path) -> None:
    model = small_detector()
    model.class_names = ("square", "bar")
    save_detector(model, tmp_path / "model.safetensors")
    loaded = load_detector(tmp_path / "model.safetensors", num_classes=5, detections=3)
    assert loaded.class_names is None
    assert loaded.roi_heads.box_predictor.cls_score.out_features == 6
    assert torch.equal(loaded.rpn.head.cls_logits.weight, model.rpn.head.cls_logits.weight)
    with torch.no_grad():
        assert len(loaded.eval()(images(1))[0]["boxes"]) == 3
    with pytest.raises(
        ValueError, match=r"doesn't fit the options given: .*, expected \[4, "
    ) as caught:
        load_detector(tmp_path / "model.safetensors", pyramid_channels=4)
    assert "\n" not in str(caught.value)


def test_a_classifier_is_no_detector(tmp_path: Path) -> None:
    halonet.save_model(halonet.create_model("resnet_50", **NARROW), tmp_path / "one.safetensors")
    with pytest.raises(
        ValueError, match=r"is not a detector, but a classifier, for halonet predict"
    ):
        load_detector(tmp_path / "one.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_detector(small_detector(box_channels=8, mask_channels=8), path)
    return path.read_bytes()


@pytest.mark.parametrize("field", field_paths(DetectorDescription), ids=".".join)
def test_missing_field_is_named(field: tuple[str, ...], saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    rewrite(path, "halonet_detector", lambda fields: remove(fields, field))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is below
        load_detector(path)
    assert str(caught.value) == (
        f"{path} doesn't describe its detector: the field {'.'.join(field)} is missing"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("variant", "heads"), 8, r"variant.heads must be tuple\[int, int, int, int\], got 8"),
        (("options", "detections"), "9", "options.detections must be int, got '9'"),
        (("options", "size"), 9, "field options.size is unknown"),
        (("category_ids",), [1.5, 2], r"category_ids\[0\] must be int, got 1.5"),
        (("num_classes",), 0, "can't create the detector of .*: num_classes must be 1 or more"),
        (("variant", "stem"), "conv", "can't create the detector of .*: stem must be"),
        (("options", "anchor_sizes"), [8], "can't create the detector of .*: anchor_sizes must"),
    ],
)
def test_field_that_does_not_fit_is_named(
    field: tuple[str, ...], value: object, message: str, saved: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    rewrite(path, "halonet_detector", lambda fields: put(fields, field, value))
    with pytest.raises(ValueError, match=message) as caught:
        load_detector(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"size": 3}, "options of a detector are image_size, .*; got 'size'"),
        ({"anchor_sizes": (8, 16)}, r"anchor_sizes must have 5 entries.* got \[8, 16\]"),
        ({"anchor_sizes": (0, 1, 2, 3, 4)}, "anchor_sizes must be positive"),
        ({"aspect_ratios": ()}, "aspect_ratios must be positive"),
        ({"detections": 0}, "detections must be positive, got 0"),
        ({"image_size": 31}, "image_size must be 32 or more, got 31"),
        ({"score_threshold": 2}, "score_threshold must be from 0 to 1, got 2"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_detector("resnet_50_se", model_options=NARROW, **options)


def test_bad_batches_are_named() -> None:
    model = small_detector().train()
    with pytest.raises(ValueError, match="targets must be given in training"):
        model(images(1))
    with pytest.raises(ValueError, match=r"images must have one size in training, got \[\(32, 32"):
        model([*images(1), *images(1, 32)], [make_target(64, BOXES)] * 2)
