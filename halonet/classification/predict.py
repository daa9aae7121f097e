"""Predictions for images without labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from halonet.data.pixels import prepare_image
from halonet.models.halonet import HaloNet


def predict(
    model: HaloNet, paths: Sequence[Path], *, batch_size: int = 32
) -> Iterator[tuple[Path, Tensor | str]]:
    """Class probabilities [classes] of each image, or what is wrong with it, in order."""
    model.eval()
    device = next(model.parameters()).device
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
                logits = model(images)
            logits = logits.float()
            multilabel = model.task == "multilabel"
            probabilities = iter((logits.sigmoid() if multilabel else logits.softmax(1)).cpu())
        for path, problem in zip(batch, found, strict=True):
            yield path, next(probabilities) if problem is None else problem
