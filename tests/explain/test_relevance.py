"""What each method's relevance adds up to."""

import pytest
import torch
from torch import nn

import halonet
from halonet.explain.attention import list_attention_layers
from halonet.explain.relevance import (
    METHODS,
    grad_cam,
    integrate_gradients,
    measure_relevance,
    occlude,
)
from halonet.explain.rollout import hand_down, roll_attention
from halonet.layers.attention import HaloAttention
from tests.pictures import SMALL_MODEL

ATTENTION = ["attention"] * 4


def make_model(**options):
    torch.manual_seed(0)
    model = halonet.create_model(
        "halonet_tiny", num_classes=3, **(SMALL_MODEL | {"spatial": ATTENTION} | options)
    )
    for bottleneck in model.stages.children():  # fresh ones are their shortcuts
        nn.init.normal_(bottleneck[0].expand_norm.weight)
    return model.eval()


def draw_image(height=40, width=56):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_relevance_has_the_images_size_and_depends_on_the_class(method):
    model, image = make_model(), draw_image()
    maps = [measure_relevance(model, image, index, method=method) for index in range(2)]
    for found in maps:
        assert found.shape == (40, 56)
        assert not found.requires_grad
        assert found.isfinite().all()
        assert found.std() > 0
    assert not torch.allclose(maps[0], maps[1])
    assert not image.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_grad_cam_of_the_last_map_adds_up_to_the_logit():
    model, image = make_model(), draw_image()
    nn.init.normal_(model.classifier.bias)
    logit = model(image[None])[0, 1] - model.classifier.bias[1]
    torch.testing.assert_close(grad_cam(model, image, 1, 4).sum(), logit)


def test_grad_cam_takes_any_stage():
    model, image = make_model(), draw_image()
    shapes = [grad_cam(model, image, 0, stage).shape for stage in (1, 2, 3, 4)]
    assert shapes == [(10, 14), (5, 7), (3, 4), (2, 2)]


def test_integrated_gradients_add_up_to_what_the_image_changes():
    model, image = make_model().double(), draw_image().double()
    whole, blank = model(torch.stack([image, torch.zeros_like(image)]))[:, 2]
    found = integrate_gradients(model, image, 2).sum()
    assert abs(found - (whole - blank)) < 0.05 * abs(whole - blank)


def test_occlusion_finds_the_one_pixel_that_counts():
    class Sum(nn.Module):
        def forward(self, images):
            return images.sum((1, 2, 3))[:, None]

    image = torch.zeros(3, 40, 32)
    image[0, 11, 17] = 5.0
    found = occlude(Sum(), image, 0)
    assert found[11, 17] == 5
    assert found.max() == 5
    assert (found[:, :8] == 0).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_handed_down_by_weight_times_gradient(stride):
    torch.manual_seed(0)
    layer = HaloAttention(6, 6, heads=3, block_size=4, halo_size=1, stride=stride).double()
    maps = torch.randn(1, 6, 7, 9, dtype=torch.double)
    result = layer(maps)
    gradient = torch.randn_like(result)
    relevance = torch.rand_like(result[:, :1])
    expected = torch.zeros(7, 9, dtype=torch.double)
    value = layer.operator_arguments(maps)["value"][0]
    rows, columns = result.shape[2:]
    for row in range(rows):
        for column in range(columns):
            found = layer.attention_weights(maps, [(row, column)])
            weights, (top, left) = found.weights[0, 0], found.corners[0].tolist()
            shares = {}
            for y in range(max(0, top), min(7, top + 6)):
                for x in range(max(0, left), min(9, left + 6)):
                    slopes = value[y, x] * gradient[0, :, row, column].view(3, 2)
                    products = weights[:, y - top, x - left] * slopes.sum(1)
                    shares[y, x] = products.clamp(min=0).mean()
            total = sum(shares.values())
            for (y, x), share in shares.items():
                expected[y, x] += relevance[0, 0, row, column] * share / total
    handed = hand_down(layer, maps, gradient, relevance)
    torch.testing.assert_close(handed[0, 0], expected)


def test_rollout_adds_nothing_and_ends_before_the_first_attention():
    model, image = make_model().double(), draw_image().double()
    found = roll_attention(model, image, 0)
    assert found.shape == (10, 14)
    last = model.forward_features(image[None])[0]
    weight = model.classifier.weight[0] - model.classifier.weight.mean(0)
    start = torch.einsum("chw,c->hw", last, weight).clamp(min=0).sum() / last[0].numel()
    # A pixel with no positive product hands down nothing; the shortcut's half stays.
    assert start / 2**4 < found.sum() <= start * (1 + 1e-9)
    assert (found >= 0).all()
    hybrid = make_model(spatial=["convolution", "attention", "convolution", "attention"])
    assert len(list_attention_layers(hybrid)) == 2
    assert roll_attention(hybrid, draw_image(), 0).shape == (10, 14)


def test_what_does_not_fit_is_refused():
    model, image = make_model(), draw_image()
    with pytest.raises(ValueError, match="method must be one of gradcam, rollout"):
        measure_relevance(model, image, 0, method="magic")
    with pytest.raises(ValueError, match="stage must be from 1 to 4, got 5"):
        measure_relevance(model, image, 0, method="gradcam", stage=5)
    with pytest.raises(ValueError, match="stage is for method gradcam, not rollout"):
        measure_relevance(model, image, 0, method="rollout", stage=2)
    plain = make_model(spatial=["convolution"] * 4)
    with pytest.raises(ValueError, match="method rollout needs HaloAttention"):
        measure_relevance(plain, image, 0, method="rollout")


def test_timms_models_are_explained():
    model, image = halonet.create_model("halonet26t", num_classes=2).eval(), draw_image(64, 64)
    for stage in (1, 4):
        found = measure_relevance(model, image, 0, method="gradcam", stage=stage)
        assert found.shape == (64, 64)
    for norm in model.modules():  # a fresh block's last norm leaves nothing of attention
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)
    with torch.no_grad():
        best = int(model(image[None]).argmax())  # for which something speaks
    found = measure_relevance(model, image, best, method="rollout")
    assert found.shape == (64, 64)
    assert found.max() > found.min()
