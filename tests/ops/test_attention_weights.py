"""Attention weights, times the values, are what every backend computes."""

import pytest
import torch
from torch import Tensor

from halonet import AttentionWeights, attention_weights, halo_attention
from halonet.check.cases import CASES, KERNEL_CASES, Case
from halonet.ops import cpu
from tests.comparison import assert_as_exact

ALL_CASES = [*CASES, *KERNEL_CASES]


def weigh_values(found: AttentionWeights, value: Tensor) -> Tensor:
    """[batch, pixels, heads, value channels]; cells outside the map have the value 0."""
    batch, height, width, heads, channels = value.shape
    result = value.new_zeros(batch, len(found.corners), heads, channels)
    for pixel, (top, left) in enumerate(found.corners.tolist()):
        for row in range(found.weights.shape[3]):
            for column in range(found.weights.shape[4]):
                if 0 <= top + row < height and 0 <= left + column < width:
                    cell = value[:, top + row, left + column]
                    result[:, pixel] += found.weights[:, pixel, :, row, column, None] * cell
    return result


def every_pixel(query: Tensor) -> list[tuple[int, int]]:
    return [(row, column) for row in range(query.shape[1]) for column in range(query.shape[2])]


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_weights_times_values_are_the_result(case: Case) -> None:
    inputs = case.inputs()
    value = inputs.pop("value")
    found = attention_weights(**inputs, **case.options, pixels=every_pixel(inputs["query"]))
    assert_as_exact("sum", found.weights.sum((3, 4)), torch.ones(found.weights.shape[:3]).double())
    expected = weigh_values(found, value)
    for backend in ("reference", "sdpa"):
        result = halo_attention(**inputs, value=value, **case.options, backend=backend)
        assert_as_exact(backend, result.flatten(1, 2), expected)
    if cpu.variant() is not None and case in CASES:  # the kernel has no kernel_size
        narrow = {name: tensor.float() for name, tensor in (inputs | {"value": value}).items()}
        plain = halo_attention(**narrow, **case.options, backend="reference").flatten(1, 2)
        result = halo_attention(**narrow, **case.options, backend="cpu").flatten(1, 2)
        assert_as_exact("cpu", result, expected, plain)


def test_a_few_pixels_in_the_order_given() -> None:
    case = Case("stride", 7, 10, {"block_size": 4, "halo_size": 2, "stride": 2})
    inputs = case.inputs()
    del inputs["value"]
    found = attention_weights(**inputs, **case.options, pixels=[(3, 4), (0, 1)])
    every = attention_weights(**inputs, **case.options, pixels=every_pixel(inputs["query"]))
    assert found.weights.equal(every.weights[:, [3 * 5 + 4, 1]])
    assert found.corners.tolist() == [[2, 6], [-2, -2]]
    none = attention_weights(**inputs, **case.options, pixels=[])
    assert none.weights.shape == (2, 0, 3, 8, 8)


@pytest.mark.parametrize("pixel", [(4, 0), (0, 5), (-1, 0)])
def test_pixels_outside_are_refused(pixel: tuple[int, int]) -> None:
    case = Case("stride", 7, 10, {"block_size": 4, "halo_size": 2, "stride": 2})
    inputs = case.inputs()
    del inputs["value"]
    with pytest.raises(ValueError, match="map of 4 x 5, got"):
        attention_weights(**inputs, **case.options, pixels=[pixel])
