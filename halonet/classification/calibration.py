"""Calibration: of the images predicted with a probability of 0.8, are four in five correct?"""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15  # as Guo et al. 2017 have it


@dataclass(frozen=True)
class Calibration:
    """Probabilities beside outcomes, in bins of equal width that aren't empty.

    Attributes:
        error: the expected calibration error: mean over the images of the difference in their bin.
        probabilities: mean of each bin [bins].
        shares: fraction of positives in each bin [bins].
        images: number of images in each bin [bins].
    """

    error: float
    probabilities: Tensor
    shares: Tensor
    images: Tensor


def calibrate(probabilities: Tensor, outcomes: Tensor) -> Calibration:
    """Compare probabilities with outcomes (whether it was so), both [images], one or more."""
    probabilities = probabilities.double()
    bins = (probabilities * BINS).long().clamp(max=BINS - 1)
    images = torch.bincount(bins, minlength=BINS)
    filled = images > 0
    means, shares = (
        torch.bincount(bins, values, BINS)[filled] / images[filled]
        for values in (probabilities, outcomes.double())
    )
    images = images[filled]
    error = ((means - shares).abs() * images).sum() / images.sum()
    return Calibration(error.item(), means, shares, images)
