"""Random changes of training images."""

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from halonet.data.augmentation import LARGEST_MAGNITUDE, Augmentation
from halonet.models.classifier import Preprocessing

CROP_RATIOS = (3 / 4, 4 / 3)  # width to height of a random crop: torchvision's, after Inception


def least_side_for_crops(augmentation: Augmentation, preprocessing: Preprocessing) -> int | None:
    """Pixels of an image's shorter side from which on no random crop has to be enlarged.

    None where there are no random crops.
    """
    smallest, largest = augmentation.crop_share
    if smallest == largest == 1:
        return None
    return math.ceil(preprocessing.image_size / math.sqrt(smallest * CROP_RATIOS[0]))


def make_augmentation(augmentation: Augmentation, preprocessing: Preprocessing) -> v2.Transform:
    """Bytes [channels, height, width] to bytes [channels, image_size, image_size], at random."""
    size = preprocessing.image_size
    steps: list[v2.Transform] = []
    if least_side_for_crops(augmentation, preprocessing) is None:
        steps.append(v2.CenterCrop(size))
    else:
        steps.append(
            v2.RandomResizedCrop(size, augmentation.crop_share, CROP_RATIOS, antialias=True)
        )
    if augmentation.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if augmentation.vertical_flip:
        steps.append(v2.RandomVerticalFlip())
    if augmentation.quarter_turns:
        steps.append(QuarterTurns())
    if augmentation.randaugment:
        steps.append(RandAugment(augmentation, preprocessing.mean))
    if augmentation.color_jitter:
        jitter = augmentation.color_jitter
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    return v2.Compose(steps)


class QuarterTurns(v2.Transform):
    """Turn by a random multiple of 90 degrees; torchvision's rotation takes any angle."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        return torch.rot90(inpt, params["turns"], (1, 2))


class RandAugment(v2.Transform):
    """TensorFlow's RandAugment, as timm has it: fifteen changes, magnitudes from 0 to 31.

    torchvision's has other changes and another scale of magnitudes. What a change uncovers takes
    the mean colour. The random numbers are Python's and numpy's.
    """

    def __init__(self, augmentation: Augmentation, mean: tuple[float, ...]) -> None:
        from timm.data.auto_augment import rand_augment_transform

        super().__init__()
        fill = tuple(round(255 * value) for value in mean)
        # timm applies a change half of the time and stops at 10 unless told otherwise.
        self.change = rand_augment_transform(
            f"rand-m{augmentation.randaugment}-n{augmentation.randaugment_layers}"
            f"-p1.0-mmax{LARGEST_MAGNITUDE}",
            {"img_mean": fill if len(fill) > 1 else fill[0]},
        )

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        changed = self.change(v2.functional.to_pil_image(inpt))
        return v2.functional.pil_to_tensor(changed)
