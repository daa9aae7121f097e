"""Programs of torch.export: the fused model's graph and weights in a file, without its classes."""

from pathlib import Path
from typing import Any

import torch

from halonet.export.description import ExportDescription, to_metadata
from halonet.models.classifier import Classifier

# Of a map of one pixel torch.export makes a case of its own.
SMALLEST_FREE = 33  # pixels, where the size is free
EXAMPLE = (70, 101)  # height and width that a program of free size is traced with


def write_program(
    model: Classifier,
    path: Path,
    description: ExportDescription,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
) -> None:
    """Write a model as a program of torch.export, with the metadata as extra files.

    Args:
        model: fused, in float32 on the CPU.
        path: of the file.
        description: of the model.
        size: height and width; None for any from 33 on.
        batch: number of images; None for any.
    """
    free: dict[int, Any] = {}
    if batch is None:
        free[0] = torch.export.Dim("batch")
    if size is None:
        free[2] = torch.export.Dim("height", min=SMALLEST_FREE)
        free[3] = torch.export.Dim("width", min=SMALLEST_FREE)
    images = torch.zeros(batch or 2, model.in_channels, *(size or EXAMPLE))
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=(free,) if free else None)
    torch.export.save(program, path, extra_files=to_metadata(description))


def run_program(path: Path) -> Any:
    """A function from an array of images to an array of logits."""
    program = torch.export.load(path).module()

    def run(images: Any) -> Any:
        with torch.no_grad():
            return program(torch.from_numpy(images)).numpy()

    return run
