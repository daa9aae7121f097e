"""ONNX files: the graph of a model, and what the file says of it."""

from pathlib import Path

import numpy as np

from halonet.export.description import ExportDescription, to_metadata
from halonet.export.graph import Graph
from halonet.export.maps import Maps
from halonet.export.network import write_network
from halonet.export.preprocessing import write_preprocessing
from halonet.models.classifier import Classifier

DTYPES: dict[str, type[np.floating]] = {"float16": np.float16}  # of precisions; else float32


def write_onnx(
    model: Classifier,
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
