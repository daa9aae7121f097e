"""The layer: projections and absolute positions around the operator."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from halonet import HaloAttention, halo_attention


@pytest.mark.parametrize("stride", [1, 2])
def test_has_the_shape_of_a_convolution(stride: int) -> None:
    maps = torch.randn(2, 12, 7, 9)
    layer = HaloAttention(12, 20, heads=2, block_size=4, halo_size=1, stride=stride)
    convolution = torch.nn.Conv2d(12, 20, 3, stride=stride, padding=1)
    assert layer(maps).shape == convolution(maps).shape


def test_is_the_operator_between_projections() -> None:
    layer = HaloAttention(6, 10, heads=2, query_key_channels=8, block_size=4, halo_size=1, stride=2)
    maps = torch.randn(2, 6, 7, 9)

    def project(weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
        projected = torch.nn.functional.conv2d(maps, weight, stride=stride)
        return projected.permute(0, 2, 3, 1).unflatten(3, (2, -1))

    expected = halo_attention(
        project(layer.query.weight, 2),
        project(layer.projection.weight[:8]),
        project(layer.projection.weight[8:]),
        layer.row_table,
        layer.column_table,
        block_size=4,
        halo_size=1,
        stride=2,
    )
    torch.testing.assert_close(layer(maps), expected.flatten(3).permute(0, 3, 1, 2))


def test_output_projection_frees_the_value_width() -> None:
    layer = HaloAttention(8, 5, heads=2, value_channels=6, output_projection=True)
    assert layer(torch.randn(1, 8, 8, 8)).shape == (1, 5, 8, 8)


def test_channels_last_maps_stay_channels_last() -> None:
    layer = HaloAttention(8, heads=2, block_size=4, halo_size=1).to(
        memory_format=torch.channels_last
    )
    maps = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    result = layer(maps)
    assert result.is_contiguous(memory_format=torch.channels_last)
    query, key, value = layer.project(maps)
    assert query.data_ptr() < key.data_ptr() < value.data_ptr(), "three views of one product"
    assert query.stride(3) == 4, "the channels of a head lie side by side"


def test_kernel_size_limits_the_reach() -> None:
    layer = HaloAttention(4, heads=1, block_size=4, halo_size=2, kernel_size=3)
    maps = torch.randn(1, 4, 8, 8)
    changed = maps.clone()
    changed[0, :, 3, 3] += 1
    moved = (layer(changed) - layer(maps)).abs().amax((0, 1)) > 1e-6
    rows, columns = moved.nonzero().T
    assert rows.min() == columns.min() == 2
    assert rows.max() == columns.max() == 4


def test_absolute_position_is_added_to_the_input_map() -> None:
    layer = HaloAttention(
        4, heads=2, block_size=4, halo_size=1, position="absolute", map_size=(6, 8)
    )
    plain = HaloAttention(4, heads=2, block_size=4, halo_size=1, position="none")
    plain.load_state_dict(layer.state_dict(), strict=False)
    maps = torch.randn(1, 4, 6, 8)
    vectors = layer.absolute_rows.T[:, :, None] + layer.absolute_columns.T[:, None]
    torch.testing.assert_close(layer(maps), plain(maps + vectors))


def test_absolute_position_is_interpolated_on_other_maps() -> None:
    layer = HaloAttention(4, heads=2, position="absolute", map_size=(2, 2))
    with torch.no_grad():
        layer.absolute_rows.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 4))
        layer.absolute_columns.zero_()
    same = HaloAttention(4, heads=2, position="none")
    same.load_state_dict(layer.state_dict(), strict=False)
    maps = torch.randn(1, 4, 4, 3)
    rows = torch.tensor([0.0, 0.25, 0.75, 1.0])[:, None]
    torch.testing.assert_close(layer(maps), same(maps + rows))


def test_every_relative_offset_gets_a_gradient() -> None:
    layer = HaloAttention(8, heads=2, block_size=4, halo_size=1)
    layer(torch.randn(2, 8, 8, 8)).square().sum().backward()
    assert layer.row_table.grad.abs().min() > 0
    assert layer.column_table.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "query_key_channels must be a multiple of heads 3, got 8"),
        ({"heads": 0}, "heads must be positive, got 0"),
        ({"heads": 8}, "query_key_channels must be even in each head .* got 8 for 8 heads"),
        (
            {"value_channels": 4},
            "value_channels 4 other than out_channels 8 needs output_projection",
        ),
        ({"position": "rotary"}, "position must be one of relative, absolute, none, got 'rotary'"),
        ({"position": "absolute"}, "map_size must be two positive sizes, got None"),
        ({"position": "absolute", "map_size": 8}, "map_size must be two positive sizes, got 8"),
        ({"position": "absolute", "map_size": (8, 8, 8)}, r"two positive sizes, got \(8, 8, 8\)"),
        ({"block_size": 3, "stride": 2}, "block_size must be a positive multiple of stride 2"),
        ({"backend": "fast"}, "backend must be one of"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaloAttention(8, **{"heads": 2} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 8.0}, "in_channels must be an integer, got 8.0"),
        ({"in_channels": "8"}, "in_channels must be an integer, got '8'"),
        ({"heads": 2.0}, "heads must be an integer, got 2.0"),
        ({"value_channels": None, "out_channels": 8.0}, "out_channels must be an integer, got 8.0"),
    ],
    ids=str,
)
def test_numbers_that_are_not_whole_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        HaloAttention(**{"in_channels": 8, "heads": 2} | options)


def test_what_is_no_tensor_is_named() -> None:
    layer = HaloAttention(8, heads=2)
    for maps, name in ((None, "NoneType"), (torch.zeros(1, 8, 8, 8).numpy(), "ndarray")):
        with pytest.raises(TypeError, match=f"maps must be a tensor, got {name}"):
            layer(maps)


def test_a_map_of_other_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"maps must have shape \[batch, 8, height, width\], got"):
        HaloAttention(8, heads=2)(torch.randn(1, 6, 8, 8))


@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
@pytest.mark.parametrize("stride", [1, 2])
def test_weights_times_values_are_the_layer(position: str, stride: int) -> None:
    layer = HaloAttention(
        6, 12, heads=3, block_size=4, halo_size=2, stride=stride, position=position, map_size=(7, 9)
    ).double()
    maps = torch.randn(2, 6, 7, 9, dtype=torch.double)
    pixels = [(0, 0), (2, 3), (3, 4)]
    found = layer.attention_weights(maps, pixels)
    value = layer.operator_arguments(maps)["value"]
    padded = F.pad(value, (0, 0, 0, 0, 8, 8, 8, 8))
    result = layer(maps)
    for place, (row, column) in enumerate(pixels):
        top, left = (found.corners[place] + 8).tolist()
        window = padded[:, top : top + 8, left : left + 8]
        sums = torch.einsum("bnuv,buvnd->bnd", found.weights[:, place], window)
        torch.testing.assert_close(sums.flatten(1), result[:, :, row, column])
