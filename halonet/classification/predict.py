"""Predictions and embeddings of images without labels."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from halonet.data.pixels import prepare_image
from halonet.data.splits import Source
from halonet.models.classifier import Classifier


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


def refuse_infinite(results: Tensor) -> Tensor:
    """A model's results [images, numbers], where they are finite.

    Raises:
        ValueError: some are infinite or nan, as a file in float16 gives them of too large numbers.
    """
    wrong = int((~results.isfinite().all(1)).sum())
    if wrong:
        raise ValueError(
            f"the model's results are infinite or nan for {wrong} of {len(results)} images; "
            "a file in float16 may need float32"
        )
    return results


def predict(
    model: Classifier, sources: Iterable[Source], *, batch_size: int = 32, mirror: bool = False
) -> Iterator[tuple[Source, Tensor | str]]:
    """Class probabilities [classes] of each image, or what is wrong with it, in order.

    With `mirror` the logits are the mean of those of the image and of its mirror image.
    """
    network = Mirrored(model) if mirror else model

    rows = compute(model, sources, lambda images: network(images).float(), batch_size=batch_size)
    for source, logits in rows:
        if isinstance(logits, str):
            yield source, logits
        else:
            yield source, logits.sigmoid() if model.task == "multilabel" else logits.softmax(0)


def embed(
    model: Classifier, sources: Iterable[Source], *, batch_size: int = 32
) -> Iterator[tuple[Source, Tensor | str]]:
    """Pooled features [num_features] of each image, or what is wrong with it, in order."""

    def find_features(images: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(images), pre_logits=True).float()

    return compute(model, sources, find_features, batch_size=batch_size)


def compute(
    model: Classifier,
    sources: Iterable[Source],
    function: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 32,
) -> Iterator[tuple[Source, Tensor | str]]:
    """A row of a function's result for each image, or what is wrong with it, in order.

    Args:
        model: whose preprocessing and device are taken; it is set to eval mode.
        sources: paths or other stored images, or functions that give one.
        function: of images as the model takes them [batch, channels, height, width].
        batch_size: images at once; one, where the model takes photos of any size.

    Raises:
        ValueError: results that are infinite or nan.
    """
    model.eval()
    preprocessing = None if model.takes_photos else model.preprocessing
    batch_size = 1 if model.takes_photos else batch_size
    device = device_of(model)
    waiting = iter(sources)
    while batch := [*islice(waiting, batch_size)]:
        pixels: list[Tensor] = []
        found: list[str | None] = []
        for source in batch:
            try:
                pixels.append(prepare_image(source, preprocessing, model.in_channels))
                found.append(None)
            except (ValueError, FileNotFoundError) as error:
                found.append(str(error))
        rows = iter(())
        if pixels:
            images = torch.stack(pixels).to(device, memory_format=torch.channels_last)
            with torch.inference_mode():
                result = function(images)
            rows = iter(refuse_infinite(result.cpu().clone()))  # outside: an ordinary tensor
        for source, problem in zip(batch, found, strict=True):
            yield source, next(rows) if problem is None else problem
