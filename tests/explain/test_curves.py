"""Deletion and insertion on a model that sees one corner only."""

import torch
from torch import nn

from halonet.explain.curves import measure_curves


class Corner(nn.Module):
    """The logit of class 1 is the mean of the upper left quarter."""

    task = "multiclass"

    def forward(self, images):
        quarter = images[:, :, : images.shape[2] // 2, : images.shape[3] // 2].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(quarter), quarter], 1)


IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 8


def order_corner(sign):
    relevance = torch.zeros(32, 32)
    relevance[:16, :16] = sign
    return relevance


def test_curves_start_and_end_at_whole_and_blank():
    curves = measure_curves(Corner(), IMAGE, order_corner(1), 1, steps=8)
    whole = Corner()(IMAGE[None]).softmax(1)[0, 1]
    assert curves.deletion.shape == curves.insertion.shape == (9,)
    torch.testing.assert_close(curves.deletion[0], whole)
    torch.testing.assert_close(curves.insertion[-1], whole)
    assert curves.deletion[-1] == 0.5
    # All that counts is gone after a quarter of the steps.
    assert (curves.deletion[2:] == 0.5).all()
    assert curves.deletion[1] > 0.5


def test_the_right_order_is_better():
    bright = IMAGE * (order_corner(1) + 0.1)
    right, wrong = (
        measure_curves(Corner(), bright, order_corner(sign), 1, steps=8) for sign in (1, -1)
    )
    assert right.deletion_area < wrong.deletion_area
    assert right.insertion_area > wrong.insertion_area


def test_squares_go_as_a_whole():
    relevance = torch.zeros(30, 32)
    relevance[9, 9] = 1.0
    curves = measure_curves(Corner(), IMAGE[:, :30], relevance, 1, cell_size=8, steps=15)
    one = IMAGE[:, :30].clone()
    one[:, 8:16, 8:16] = 0
    expected = Corner()(one[None]).softmax(1)[0, 1]
    torch.testing.assert_close(curves.deletion[1], expected)
