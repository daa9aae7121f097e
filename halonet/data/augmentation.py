"""The random changes of training images, as a configuration has them."""

from dataclasses import dataclass

LARGEST_MAGNITUDE = 31  # of RandAugment, as the paper's H7 has it


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    Attributes:
        crop_share: smallest and largest share of an image's area that a random crop keeps. It is
            cut from the image in its own size, or in a fraction of it as long as no crop has to be
            enlarged for that. With 1 and 1 the central crop is taken, as of held-out images.
        horizontal_flip: mirror half of the images, left to right.
        vertical_flip: mirror half of the images, top to bottom.
        quarter_turns: turn by 0, 90, 180 or 270 degrees, each as likely.
        color_jitter: largest relative change of brightness, contrast and saturation.
        randaugment: magnitude of RandAugment on TensorFlow's scale, up to 31; 0 for none.
        randaugment_layers: changes that RandAugment makes, one after the other.
    """

    crop_share: tuple[float, float] = (0.35, 1.0)
    horizontal_flip: bool = True
    vertical_flip: bool = False
    quarter_turns: bool = False
    color_jitter: float = 0.0
    randaugment: int = 0
    randaugment_layers: int = 2
