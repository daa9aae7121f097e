"""The attention of a place in an image."""

import pytest
import torch

import halonet
from halonet.explain.attention import find_attention_layer, list_attention_layers, view_attention
from halonet.explain.relevance import measure_relevance
from halonet.layers.timm_attention import TimmHaloAttention
from tests.explain.test_relevance import draw_image, make_model


def test_layers_are_counted_in_their_stage():
    model = make_model(layers=[1, 1, 3, 2], spatial=["convolution", *["attention"] * 3])
    places = [(one.stage, one.layer) for one in list_attention_layers(model)]
    assert places == [(2, 1), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2)]
    assert find_attention_layer(model)[:2] == (4, 2)
    assert find_attention_layer(model, 3)[:2] == (3, 3)
    assert find_attention_layer(model, 3, 1)[:2] == (3, 1)
    with pytest.raises(ValueError, match="stage 1, layer any: stage 2 has layers 1 to 1, stage 3"):
        find_attention_layer(model, 1)
    with pytest.raises(ValueError, match="stage 4, layer 3"):
        find_attention_layer(model, 4, 3)


def test_view_is_the_layers_weights_in_pixels_of_the_image():
    model, image = make_model(heads=[1, 2, 2, 2], layers=[1, 2, 1, 1]), draw_image()
    # Stage 2, layer 1 reads the map at stride 4 and gives one at stride 8.
    view = view_attention(model, image, (25.0, 17.0), stage=2, layer=1, head=2)
    assert view.pixel == (24, 16, 32, 24)
    assert view.window == (20, 12, 36, 28)  # block 2, halo 1 at stride 4
    maps = model.stages[0](model.stem(image[None]))
    bottleneck = model.stages[1][0]
    maps = bottleneck.activation(bottleneck.reduce_norm(bottleneck.reduce(maps)))
    expected = bottleneck.spatial.attention_weights(maps, [(2, 3)]).weights[0, 0]
    torch.testing.assert_close(view.weights, expected[1])
    mean = view_attention(model, image, (25.0, 17.0), stage=2, layer=1)
    torch.testing.assert_close(mean.weights, expected.mean(0))
    second = view_attention(model, image, (25.0, 17.0), stage=2)
    assert (second.layer, second.window) == (2, (8, 8, 40, 40))
    assert second.weights.sum() == pytest.approx(1)


def test_what_does_not_fit_is_refused():
    model, image = make_model(), draw_image()
    with pytest.raises(ValueError, match=r"image of 56 x 40, got \(56.0, 0.0\)"):
        view_attention(model, image, (56.0, 0.0))
    with pytest.raises(ValueError, match="head must be from 1 to 1 in stage 4, layer 1, got 2"):
        view_attention(model, image, (5.0, 0.0), head=2)


def test_timms_layers_are_looked_into():
    torch.manual_seed(0)
    model = halonet.create_model("halonet26t", num_classes=3).eval()
    image = torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(1))
    assert [one[:2] for one in list_attention_layers(model)] == [(3, 1), (4, 1), (4, 2)]
    # Stage 4, layer 1 reads the map at stride 16 and gives one at stride 32, by the operator.
    view = view_attention(model, image, (70.0, 20.0), stage=4, layer=1, head=2)
    assert view.pixel == (64, 0, 96, 32)
    assert view.window == (-32, -32, 160, 160)  # block 8, halo 2 at stride 16
    assert view.weights.shape == (12, 12)
    assert view.weights.sum() == pytest.approx(1, abs=1e-4)
    relevance = [measure_relevance(model, image, index, method="rollout") for index in (0, 1)]
    assert relevance[0].shape == (64, 96)
    assert relevance[0].std() > 0
    assert not torch.allclose(*relevance)


def test_a_layer_that_pools_is_looked_into_before_it():
    from timm.layers.halo_attn import HaloAttn

    model, image = make_model(), draw_image()
    layer = HaloAttn(16, 16, stride=2, num_heads=1, block_size=2, halo_size=1, avg_down=True)
    model.stages[1][0].spatial = TimmHaloAttention(layer)
    view = view_attention(model, image, (25.0, 17.0), stage=2)
    assert view.pixel == (24, 16, 28, 20)
    assert view.window == (20, 12, 36, 28)
    measure_relevance(model, image, 0, method="rollout")
