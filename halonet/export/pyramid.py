"""A detector's backbone and feature pyramid as an ONNX file; its heads are left out."""

import copy
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from halonet.detection.backbone import PyramidBackbone
from halonet.detection.detector import Detector
from halonet.export.check import CHECKED_BATCHES, CHECKED_SIZES, relative_difference
from halonet.export.description import KEY
from halonet.export.formats import TOLERANCES, ExportReport, check_output, write_checked
from halonet.export.graph import Graph
from halonet.export.layers import write_layer
from halonet.export.maps import Maps, halve, to_planes
from halonet.export.network import write_stages
from halonet.export.onnx_classifier import open_session
from halonet.export.onnx_file import DTYPES, add_images
from halonet.models.classifier import STRIDES

LEVELS = (*map(str, STRIDES), "pool")


def export_pyramid(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    command: str = "halonet.export.pyramid.export_pyramid",
    license: str | None = None,  # noqa: A002 - the usual name
) -> ExportReport:
    """Write what a detector's heads read, for images of any size from 32 pixels on and any batch.

    The file's input is `images`, float32 [batch, 3, height, width], scaled and normalized as the
    metadata say; its outputs are the levels "4", "8", "16", "32" and "pool", as `PyramidBackbone`
    has them. It is run beside the detector's backbone, and appears only if it is right.

    Args:
        detector: neither fused nor compiled; it stays as it is.
        path: of the file; there must be none yet.
        precision: "float32", or "float16" for half the size.
        command: that the metadata names.
        license: of the weights, in words, for the metadata.

    Raises:
        FileExistsError, ModuleNotFoundError, OSError, TypeError: as of `export_model`.
        ValueError: a fused detector, another precision, or a file that would give other maps than
            the backbone.
    """
    path = Path(path)
    if precision not in ("float32", "float16"):
        raise ValueError(f"precision of a pyramid must be float32 or float16, got {precision!r}")
    plain = copy_detector(detector)
    check_output(path, "onnx")
    metadata = {
        "model": plain.backbone.body.variant.name,
        "in_channels": plain.backbone.body.in_channels,
        "image_size": plain.options.image_size,
        "mean": plain.backbone.body.preprocessing.mean,
        "std": plain.backbone.body.preprocessing.std,
        "levels": LEVELS,
        "channels": plain.backbone.out_channels,
        "precision": precision,
        "command": command,
        "license": license,
    }

    def write(temporary: Path) -> float:
        import onnx

        started = time.perf_counter()
        fused = plain.fuse().backbone
        graph = Graph(DTYPES.get(precision, np.float32))
        images = add_images(graph, fused.body.in_channels, size=None, batch=None)
        for name, level in write_pyramid(graph, fused, images).items():
            shape = ["batch", level.channels, f"height_{name}", f"width_{name}"]
            graph.add_output(level.value, name, np.float32, shape)
        texts = {KEY + name: json.dumps(value) for name, value in metadata.items()}
        onnx.save(graph.finish(texts), temporary)
        return time.perf_counter() - started

    return write_checked(
        path, write, lambda file: compare_levels(plain.backbone, file), TOLERANCES[precision]
    )


def copy_detector(detector: nn.Module) -> Detector:
    """A copy in evaluation mode, in float32 on the CPU.

    Raises:
        TypeError: it is no `Detector`, as a compiled one. ValueError: it is fused.
    """
    if not isinstance(detector, Detector):
        raise TypeError(
            f"detector must be a Detector, got {type(detector).__name__}; of a compiled or wrapped "
            "one, export the one that it was made from"
        )
    if not any(name.endswith("running_var") for name in detector.backbone.body.stem.state_dict()):
        raise ValueError("detector is fused already: export the one that it was made from")
    return copy.deepcopy(detector).cpu().float().eval()


def write_pyramid(graph: Graph, backbone: PyramidBackbone, images: Maps) -> dict[str, Maps]:
    """The levels of images, by name, in planes.

    Args:
        graph: to write into.
        backbone: with a fused body.
        images: planes.

    Raises:
        ValueError: a module that has no counterpart; the message names it.
    """
    pyramid: FeaturePyramidNetwork = backbone.fpn
    inner = [
        to_planes(graph, write_layer(layer, graph, maps))
        for layer, maps in zip(
            pyramid.inner_blocks, write_stages(graph, backbone.body, images), strict=True
        )
    ]
    merged = [inner[-1]]
    for maps in inner[-2::-1]:
        above = _enlarge(graph, merged[0], maps)
        merged.insert(0, maps.replace_value(graph.add("Add", maps.value, above.value)))
    levels = [
        to_planes(graph, write_layer(layer, graph, maps))
        for layer, maps in zip(pyramid.layer_blocks, merged, strict=True)
    ]
    last = levels[-1]
    pooled = graph.add("MaxPool", last.value, kernel_shape=[1, 1], strides=[2, 2])
    height, width = halve(graph, last.height), halve(graph, last.width)
    levels.append(Maps(pooled, last.channels, height, width, "planes"))
    return dict(zip(LEVELS, levels, strict=True))


def compare_levels(backbone: PyramidBackbone, path: Path) -> dict[str, float]:
    """The largest differences by batch and size, relative to the largest number of the level."""
    session = open_session(path)
    numbers = torch.Generator().manual_seed(0)
    differences = {}
    for (height, width), count in itertools.product(CHECKED_SIZES, CHECKED_BATCHES):
        images = torch.randn(count, backbone.body.in_channels, height, width, generator=numbers)
        with torch.inference_mode():
            expected = backbone(images)
        found = session.run(list(LEVELS), {"images": images.numpy()})
        differences[f"{count} x {height} x {width}"] = max(
            relative_difference(torch.from_numpy(one), expected[name])
            for name, one in zip(LEVELS, found, strict=True)
        )
    return differences


def _enlarge(graph: Graph, maps: Maps, target: Maps) -> Maps:
    """Maps in a target's size: each pixel is the nearest, counted from the upper left."""
    rows, columns = (
        graph.add("Div", graph.add("Mul", graph.add("Range", 0, to, 1), size), to)
        for size, to in ((maps.height, target.height), (maps.width, target.width))
    )
    value = graph.add("Gather", maps.value, rows, axis=2)
    return target.replace_value(graph.add("Gather", value, columns, axis=3))
