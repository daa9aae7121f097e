"""ONNX files: the graph of a model, and what the file says of it."""

from pathlib import Path

import numpy as np

from halonet.export.description import ExportDescription, to_metadata
from halonet.export.graph import OPSET, Graph
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
    opset: int = OPSET,
    loops: bool = True,
) -> None:
    """Write a model to an ONNX file.

    Args:
        model: fused, in float32 on the CPU.
        path: of the file.
        description: of the model, and how it is to be written.
        size: height and width; None for any.
        batch: number of images; None for any.
        opset: version of ONNX's operators.
        loops: as of a `Graph`.
    """
    import onnx

    graph = Graph(DTYPES.get(description.precision, np.float32), opset, loops=loops)
    count = "batch" if batch is None else batch
    if description.with_preprocessing:
        shape = [count, "height", "width", model.in_channels]
        photos = graph.add_input("photos", np.uint8, shape)
        images = write_preprocessing(graph, photos, model.preprocessing, model.in_channels)
        images = _cast_images(graph, images)
    else:
        images = add_images(graph, model.in_channels, size=size, batch=batch)
    result = write_network(graph, model, images)
    name, columns = ("logits", model.num_classes)
    if not model.num_classes:
        name, columns = "features", model.num_features
    graph.add_output(result, name, np.float32, [count, columns])
    onnx.save(graph.finish(to_metadata(description)), path)


def add_images(
    graph: Graph, in_channels: int, *, size: tuple[int, int] | None, batch: int | None
) -> Maps:
    """The input "images", float32 [batch, in_channels, height, width], in the graph's own type.

    Args:
        graph: to write into.
        in_channels: of the images.
        size: height and width; None for any.
        batch: number of images; None for any.
    """
    sides: list[int | str] = ["height", "width"] if size is None else [*size]
    count = "batch" if batch is None else batch
    value = graph.add_input("images", np.float32, [count, in_channels, *sides])
    if size is None:
        shape = graph.add("Shape", value)
        height, width = (graph.add("Gather", shape, axis) for axis in (2, 3))
    else:
        height, width = (graph.constant(side) for side in size)
    return _cast_images(graph, Maps(value, in_channels, height, width, "planes"))


def _cast_images(graph: Graph, images: Maps) -> Maps:
    if graph.dtype is np.float32:
        return images
    return images.replace_value(graph.cast(images.value, graph.dtype))
