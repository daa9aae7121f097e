"""ONNX files: the graph of a model, what the file says of it, and the check beside the model."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halonet.export.description import ExportDescription, to_metadata
from halonet.export.graph import Graph
from halonet.export.maps import Maps
from halonet.export.network import write_network
from halonet.export.onnx_classifier import open_session
from halonet.export.preprocessing import write_preprocessing
from halonet.models.halonet import HaloNet

# Height and width of the images that a file for any size is checked with, after the model's own.
CHECKED_SIZES = ((97, 131), (160, 64))
LARGEST_CHECKED = 128  # pixels; the model's own size may be larger, and takes long then
# The same of photos, as multiples of the model's size. From six on Pillow shrinks in two steps.
CHECKED_PHOTOS = ((1.25, 1.7), (2.2, 1.0), (3.1, 3.1))
CHECKED_BATCHES = (1, 2)
DTYPES: dict[str, type[np.floating]] = {"float16": np.float16}  # of precisions; else float32


def write_onnx(
    model: HaloNet,
    path: Path,
    description: ExportDescription,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
) -> None:
    """Write a model to an ONNX file.

    Args:
        model: fused, in float32 on the CPU.
        path: of the file.
        description: of the model, and how it is to be written.
        size: height and width; None for any.
        batch: number of images; None for any.
    """
    import onnx

    graph = Graph(DTYPES.get(description.precision, np.float32))
    count = "batch" if batch is None else batch
    if description.with_preprocessing:
        shape = [count, "height", "width", model.in_channels]
        photos = graph.add_input("photos", np.uint8, shape)
        images = write_preprocessing(graph, photos, model.preprocessing, model.in_channels)
    else:
        sides: list[int | str] = ["height", "width"] if size is None else [*size]
        value = graph.add_input("images", np.float32, [count, model.in_channels, *sides])
        if size is None:
            shape_of_images = graph.add("Shape", value)
            height, width = (graph.add("Gather", shape_of_images, axis) for axis in (2, 3))
        else:
            height, width = (graph.constant(side) for side in size)
        images = Maps(value, model.in_channels, height, width, "planes")
    if graph.dtype is not np.float32:
        images = images.replace_value(graph.cast(images.value, graph.dtype))
    result = write_network(graph, model, images)
    name, columns = ("logits", model.num_classes)
    if not model.num_classes:
        name, columns = "features", model.num_features
    graph.add_output(result, name, np.float32, [count, columns])
    onnx.save(graph.finish(to_metadata(description)), path)


def compare_onnx(
    model: nn.Module,
    path: Path,
    description: ExportDescription,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
    calibration: Tensor | None = None,
) -> dict[str, float]:
    """Run a file beside its model, on images or photos that are drawn, or the first of those given.

    Args:
        model: in float32 on the CPU, in evaluation mode.
        path: of the file.
        description: that was written with the model.
        size: as it was written.
        batch: as it was written.
        calibration: images that the file was quantized by: noise is out of their range.

    Returns:
        For each batch and size, as "2 x 97 x 131", the largest difference of the logits, relative
        to the largest logit.
    """
    session = open_session(path)
    numbers = torch.Generator().manual_seed(0)
    own = description.preprocessing.image_size
    if description.with_preprocessing:
        sizes = [(round(own * height), round(own * width)) for height, width in CHECKED_PHOTOS]
    elif calibration is not None:
        sizes = [(calibration.shape[2], calibration.shape[3])]
    elif size is not None:
        sizes = [size]
    else:
        sizes = [(min(own, LARGEST_CHECKED),) * 2, *CHECKED_SIZES]
    differences = {}
    for (height, width), count in itertools.product(sizes, [batch] if batch else CHECKED_BATCHES):
        if description.with_preprocessing:
            given, images = _draw_photos(count, height, width, description, numbers)
        else:
            images = torch.randn(count, description.in_channels, height, width, generator=numbers)
            given = images.numpy()
        with torch.inference_mode():
            expected = model(images)
        (found,) = session.run(None, {session.get_inputs()[0].name: given})
        differences[f"{count} x {height} x {width}"] = relative_difference(
            torch.from_numpy(found), expected
        )
    return differences


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number expected; nan or inf where one is."""
    largest = max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
    return (found - expected).abs().max().item() / largest


def _draw_photos(
    count: int, height: int, width: int, description: ExportDescription, numbers: torch.Generator
) -> tuple[Any, Tensor]:
    """Smooth pictures as bytes [batch, height, width, channels], and as a model takes them."""
    from PIL import Image

    from halonet.data.pixels import prepare_image

    channels = description.in_channels
    photos, images = [], []
    for _ in range(count):
        coarse = torch.randint(0, 256, (channels, 6, 6), generator=numbers).byte().numpy()
        bands = [
            Image.fromarray(band).resize((width, height), Image.Resampling.BICUBIC)
            for band in coarse
        ]
        photo = Image.merge("RGB", bands) if channels == 3 else bands[0]
        photos.append(np.asarray(photo).reshape(height, width, channels))
        images.append(prepare_image(lambda photo=photo: photo, description.preprocessing, channels))
    return np.stack(photos), torch.stack(images)
