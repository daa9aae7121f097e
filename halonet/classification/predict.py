"""Predictions for images without labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from halonet.data.pixels import prepare_image
from halonet.models.halonet import HaloNet


class Mirrored(nn.Module):
    """The mean of a model's logits for images and for their mirror images, left to right."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        return (self.model(images) + self.model(images.flip(3))) / 2


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU for one that has none, as an exported file's."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def predict(
    model: HaloNet, paths: Sequence[Path], *, batch_size: int = 32, mirror: bool = False
) -> Iterator[tuple[Path, Tensor | str]]:
    """Class probabilities [classes] of each image, or what is wrong with it, in order.

    With `mirror` the logits are the mean of those of the image and of its mirror image.
    """
    model.eval()
    network = Mirrored(model) if mirror else model
    device = device_of(model)
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        pixels: list[Tensor] = []
        found: list[Tensor | str | None] = []
        for path in batch:
            try:
                pixels.append(prepare_image(path, model.preprocessing, model.in_channels))
                found.append(None)
            except (ValueError, FileNotFoundError) as error:
                found.append(str(error))
        probabilities = iter(())
        if pixels:
            images = torch.stack(pixels).to(device, memory_format=torch.channels_last)
            with torch.inference_mode():
                logits = network(images)
            logits = logits.float()
            multilabel = model.task == "multilabel"
            probabilities = iter((logits.sigmoid() if multilabel else logits.softmax(1)).cpu())
        for path, problem in zip(batch, found, strict=True):
            yield path, next(probabilities) if problem is None else problem
