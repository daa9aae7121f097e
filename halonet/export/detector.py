"""A detector as one ONNX file: a photo's bytes in, boxes, labels, scores and masks out.

torchvision's steps in its order, as `Detector.detect` takes them, in standard operators.
"""

import copy
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from halonet.detection.detector import Detector
from halonet.export.check import draw_photo
from halonet.export.description import KEY
from halonet.export.formats import ExportReport, check_output, write_checked
from halonet.export.graph import Graph
from halonet.export.layers import write_layer
from halonet.export.maps import Maps, count_pixels, to_array, write_product
from halonet.export.onnx_detector import load_onnx_detector
from halonet.export.pyramid import copy_detector, write_pyramid
from halonet.models.classifier import STRIDES

SMALLEST_BOX = 1e-2  # pixels on a side; torchvision's, in its `postprocess_detections`
# Of a photo's objects, boxes are compared relative to its longer side. Rounding makes about 1e-6.
TOLERANCE = 1e-3
# Photos of the check, as shares of the detector's image size.
CHECKED_PHOTOS = ((0.6, 1.0), (1.3, 0.9), (0.5, 0.5))
# One object in so many may be another: of two that overlap and have equal scores up to rounding,
# either is kept.
OBJECTS_OF_A_CHANGE = 10


@dataclass(frozen=True)
class _Sizes:
    """Heights and widths in pixels, as names of scalars: of the photo, as scaled, as padded."""

    photo: Sequence[str]
    scaled: Sequence[str]
    padded: Sequence[str]


def export_detector(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    command: str = "halonet.export.detector.export_detector",
    license: str | None = None,  # noqa: A002 - the usual name
) -> ExportReport:
    """Write a detector to an ONNX file (opset 18) that takes a photo of any size, and check it.

    The input is `photos`, bytes [1, height, width, 3]; the outputs are torchvision's: `boxes`
    [n, 4], left, top, right, bottom in pixels of the photo, `labels` [n] from 1 on, `scores` [n]
    and, of Mask R-CNN, `masks` [n, 1, 28, 28] within the boxes, from 0 to 1; best scores first.
    The file is run beside the detector on drawn photos, without a least score, and appears only if
    it finds the same.

    Args:
        detector: neither fused nor compiled; it stays as it is.
        path: of the file; there must be none yet.
        command: that the metadata names.
        license: of the weights, in words, for the metadata.

    Raises:
        FileExistsError, ModuleNotFoundError, OSError, TypeError: as of `export_model`.
        ValueError: a fused detector, a part that has no counterpart, or a file that would find
            something else.
    """
    path = Path(path)
    plain = copy_detector(detector)
    check_output(path, "onnx")
    texts = describe_detector(plain, command=command, license=license)
    fused = plain.fuse()

    def write(temporary: Path) -> float:
        started = time.perf_counter()
        write_detector(fused, temporary, texts, score_threshold=plain.options.score_threshold)
        return time.perf_counter() - started

    def compare(temporary: Path) -> dict[str, float]:
        return compare_with_detector(plain, fused, temporary, texts)

    return write_checked(path, write, compare, TOLERANCE)


def describe_detector(
    detector: Detector,
    *,
    command: str,
    license: str | None,  # noqa: A002 - the usual name
) -> dict[str, str]:
    """The metadata of a detector's file, as JSON texts by name."""
    facts = {
        "model": detector.name,
        "parameters": detector.parameter_count,
        "num_classes": detector.num_classes,
        "class_names": detector.class_names,
        "category_ids": detector.category_ids,
        "options": dataclasses.asdict(detector.options),
        "command": command,
        "license": license,
    }
    return {KEY + name: json.dumps(value) for name, value in facts.items()}


def write_detector(
    detector: Detector, path: Path, metadata: Mapping[str, str], *, score_threshold: float
) -> None:
    """Write a fused detector's file, unchecked; objects with this score or less are left out."""
    import onnx

    graph = Graph()
    body, heads = detector.backbone.body, detector.roi_heads
    photos = graph.add_input("photos", np.uint8, [1, "height", "width", body.in_channels])
    images, sizes = _write_images(graph, photos, detector)
    levels = write_pyramid(graph, detector.backbone, images)
    regions = _write_proposals(graph, levels, sizes, detector)
    pooled = {name: levels[name] for name in map(str, STRIDES)}
    boxes, labels, scores = _write_boxes(graph, pooled, regions, sizes, heads, score_threshold)
    found = {"boxes": _scale_back(graph, boxes, sizes), "labels": labels, "scores": scores}
    shapes: dict[str, list[int | str]] = {"boxes": [4], "masks": [1, 28, 28]}
    if detector.options.has_masks:
        found["masks"] = _write_masks(graph, pooled, boxes, labels, heads)
    for name, value in found.items():
        dtype = np.int64 if name == "labels" else np.float32
        graph.add_output(value, name, dtype, ["objects", *shapes.get(name, [])])
    onnx.save(graph.finish(metadata), path)


def _write_images(graph: Graph, photos: str, detector: Detector) -> tuple[Maps, _Sizes]:
    """GeneralizedRCNNTransform: normalized, the longer side scaled, padded with zeros."""
    transform = detector.transform
    shape = graph.add("Shape", photos)
    photo = [graph.add("Gather", shape, axis) for axis in (1, 2)]
    # In float64, as Python has it: rounded down, a pixel depends on it.
    longer = graph.cast(graph.add("Max", *photo), np.float64)
    target = graph.constant(transform.max_size, np.float64)
    factor = graph.add("Div", target, longer)
    scaled = [
        graph.cast(
            graph.add("Floor", graph.add("Mul", graph.cast(size, np.float64), factor)), np.int64
        )
        for size in photo
    ]
    planes = graph.cast(graph.add("Transpose", photos, perm=[0, 3, 1, 2]), np.float32)
    mean, std = (
        graph.weight(np.array(values, np.float32)[:, None, None])
        for values in (transform.image_mean, transform.image_std)
    )
    planes = graph.add("Sub", graph.add("Div", planes, graph.weight(255)), mean)
    planes = graph.add("Div", planes, std)
    channels = detector.backbone.body.in_channels
    planes = graph.add("Resize", planes, "", "", graph.shape(1, channels, *scaled), mode="linear")
    missing = [
        graph.add("Mod", graph.add("Neg", size), transform.size_divisible) for size in scaled
    ]
    planes = graph.add("Pad", planes, graph.shape(0, 0, 0, 0, 0, 0, *missing))
    height, width = (
        graph.add("Add", size, rest) for size, rest in zip(scaled, missing, strict=True)
    )
    sizes = _Sizes(photo, scaled, (height, width))
    return Maps(planes, channels, height, width, "planes"), sizes


def _write_proposals(
    graph: Graph, levels: Mapping[str, Maps], sizes: _Sizes, detector: Detector
) -> str:
    """RegionProposalNetwork: regions [n, 4] of the scaled image, by their scores."""
    network: Any = detector.rpn
    count = detector.options.proposals
    boxes, scores = [], []
    for maps, cells in zip(levels.values(), network.anchor_generator.cell_anchors, strict=True):
        hidden = write_layer(network.head.conv, graph, maps)
        objectness = write_layer(network.head.cls_logits, graph, hidden)
        deltas = write_layer(network.head.bbox_pred, graph, hidden)
        there = graph.add("Mul", count_pixels(graph, maps), objectness.channels)
        best, place = graph.add_node(
            "TopK",
            graph.reshape(_channels_last(graph, objectness), -1),
            graph.shape(graph.add("Min", there, count)),
            outputs=2,
        )
        moves = graph.reshape(_channels_last(graph, deltas), -1, 4)
        moves, anchors = (
            graph.add("Gather", one, place)
            for one in (moves, _write_anchors(graph, maps, cells, sizes))
        )
        found = _clip(graph, _decode(graph, moves, anchors, network.box_coder), sizes)
        score = graph.add("Sigmoid", best)
        score = _drop_small(graph, found, score, network.min_size)
        kept = graph.add(
            "NonMaxSuppression",
            graph.add("Unsqueeze", found, [0]),
            graph.add("Unsqueeze", score, [0, 1]),
            count,
            graph.weight(network.nms_thresh),
            graph.weight(-0.5),
        )
        kept = graph.add("Gather", kept, 2, axis=1)
        boxes.append(graph.add("Gather", found, kept))
        scores.append(graph.add("Gather", score, kept))
    order, _ = _sort(graph, graph.add("Concat", *scores, axis=0), count)
    return graph.add("Gather", graph.add("Concat", *boxes, axis=0), order)


def _write_anchors(graph: Graph, maps: Maps, cells: Tensor, sizes: _Sizes) -> str:
    """AnchorGenerator: cells [a, 4] around each pixel of a map, [height * width * a, 4].

    Its strides are whole: those of "pool" can differ from 64, as torchvision's do.
    """
    shifts = []
    for axis, (size, whole) in enumerate(zip((maps.height, maps.width), sizes.padded, strict=True)):
        places = graph.add("Mul", graph.add("Range", 0, size, 1), graph.add("Div", whole, size))
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        of_axis = np.array([0, 1, 0, 1] if axis == 0 else [1, 0, 1, 0])
        places = graph.cast(graph.reshape(places, *shape), np.float32)
        shifts.append(graph.add("Mul", places, graph.weight(of_axis)))
    anchors = graph.add("Add", graph.add("Add", *shifts), graph.weight(to_array(cells)))
    return graph.reshape(anchors, -1, 4)


def _write_boxes(
    graph: Graph,
    levels: Mapping[str, Maps],
    regions: str,
    sizes: _Sizes,
    heads: Any,
    score_threshold: float,
) -> tuple[str, str, str]:
    """RoIHeads without masks: boxes in the scaled image, labels and scores."""
    features, order = _pool(graph, levels, regions, heads.box_roi_pool)
    regions = graph.add("Gather", regions, order)
    head, predictor = heads.box_head, heads.box_predictor
    hidden = graph.reshape(features, -1, head.fc6.in_features)
    for layer in (head.fc6, head.fc7):
        hidden = graph.add("Relu", write_product(graph, hidden, layer.weight, layer.bias))
    logits, deltas = (
        write_product(graph, hidden, layer.weight, layer.bias)
        for layer in (predictor.cls_score, predictor.bbox_pred)
    )
    classes = predictor.cls_score.out_features
    deltas = graph.reshape(deltas, -1, classes, 4)
    boxes = _decode(graph, deltas, graph.add("Unsqueeze", regions, [1]), heads.box_coder)
    # Without the background, by class: [classes, regions, 4] and [classes, regions].
    boxes = graph.add("Slice", _clip(graph, boxes, sizes), [1], [classes], [1])
    boxes = graph.add("Transpose", boxes, perm=[1, 0, 2])
    scores = graph.add("Slice", graph.add("Softmax", logits, axis=1), [1], [classes], [1])
    scores = graph.add("Transpose", scores, perm=[1, 0])
    scores = _drop_small(graph, boxes, scores, SMALLEST_BOX)
    kept = graph.add(
        "NonMaxSuppression",
        boxes,
        graph.add("Unsqueeze", scores, [1]),
        heads.detections_per_img,
        graph.weight(heads.nms_thresh),
        graph.weight(score_threshold),
    )
    places = graph.add("Gather", kept, [0, 2], axis=1)
    order, scores = _sort(graph, graph.add("GatherND", scores, places), heads.detections_per_img)
    places = graph.add("Gather", places, order)
    labels = graph.add("Add", graph.add("Gather", places, 0, axis=1), 1)
    return graph.add("GatherND", boxes, places), labels, scores


def _write_masks(
    graph: Graph, levels: Mapping[str, Maps], boxes: str, labels: str, heads: Any
) -> str:
    """The masks of boxes, each of its own class, [n, 1, 28, 28]."""
    pool, predictor = heads.mask_roi_pool, heads.mask_predictor
    features, order = _pool(graph, levels, boxes, pool)
    side = graph.constant(pool.output_size[0])
    channels = predictor.conv5_mask.in_channels
    hidden = write_layer(heads.mask_head, graph, Maps(features, channels, side, side, "planes"))
    layer = predictor.conv5_mask
    enlarged = graph.add(
        "ConvTranspose",
        hidden.value,
        graph.weight(to_array(layer.weight)),
        graph.weight(to_array(layer.bias)),
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
    )
    maps = Maps(graph.add("Relu", enlarged), layer.out_channels, side, side, "planes")
    logits = write_layer(predictor.mask_fcn_logits, graph, maps)
    length = 2 * pool.output_size[0]
    masks = graph.reshape(graph.add("Sigmoid", logits.value), -1, 1, length, length)
    count = graph.add("Gather", graph.add("Shape", order), 0)
    firsts = graph.add("Mul", graph.add("Range", 0, count, 1), logits.channels)
    masks = graph.add("Gather", masks, graph.add("Add", firsts, graph.add("Gather", labels, order)))
    _, back = graph.add_node("TopK", order, graph.shape(count), outputs=2, largest=0)
    return graph.add("Gather", masks, back)


def _pool(graph: Graph, levels: Mapping[str, Maps], boxes: str, pool: Any) -> tuple[str, str]:
    """MultiScaleRoIAlign: features of boxes by level, [n, channels, side, side], and their order.

    A box is read from the level on which it is about as large as 224 pixels are at stride 16.
    """
    mapper, side = pool.map_levels, pool.output_size[0]
    sides = graph.add("Sub", *_corners(graph, boxes)[::-1])
    length = graph.add("Sqrt", graph.add("ReduceProd", sides, [-1], keepdims=0))
    chosen = graph.constant(0)
    for level in range(mapper.k_min + 1, mapper.k_max + 1):
        least = graph.weight(mapper.s0 * 2 ** (level - mapper.lvl0 - mapper.eps))
        is_larger = graph.cast(graph.add("GreaterOrEqual", length, least), np.int64)
        chosen = graph.add("Add", chosen, is_larger)
    features, orders = [], []
    for number, (maps, scale) in enumerate(zip(levels.values(), pool.scales, strict=True)):
        place = graph.reshape(graph.add("NonZero", graph.add("Equal", chosen, number)), -1)
        orders.append(place)
        features.append(
            graph.add(
                "RoiAlign",
                maps.value,
                graph.add("Gather", boxes, place),
                graph.add("Mul", place, 0),  # the image of each box
                coordinate_transformation_mode="output_half_pixel",
                output_height=side,
                output_width=side,
                sampling_ratio=pool.sampling_ratio,
                spatial_scale=scale,
            )
        )
    return graph.add("Concat", *features, axis=0), graph.add("Concat", *orders, axis=0)


def _decode(graph: Graph, deltas: str, boxes: str, coder: BoxCoder) -> str:
    """BoxCoder: boxes [.., 4] moved and scaled by deltas [.., 4]."""
    first, last = _corners(graph, boxes)
    sides = graph.add("Sub", last, first)
    half = graph.weight(0.5)
    centers = graph.add("Add", first, graph.add("Mul", sides, half))
    moves, grows = (
        graph.add("Div", part, graph.weight(np.array(weights)))
        for part, weights in zip(
            _corners(graph, deltas), (coder.weights[:2], coder.weights[2:]), strict=True
        )
    )
    grows = graph.add("Min", grows, graph.weight(coder.bbox_xform_clip))
    centers = graph.add("Add", graph.add("Mul", moves, sides), centers)
    halves = graph.add("Mul", graph.add("Mul", graph.add("Exp", grows), sides), half)
    corners = (graph.add(operator, centers, halves) for operator in ("Sub", "Add"))
    return graph.add("Concat", *corners, axis=-1)


def _corners(graph: Graph, boxes: str) -> list[str]:
    """The first and the last two of four numbers."""
    return [graph.add("Slice", boxes, [at], [at + 2], [-1]) for at in (0, 2)]


def _clip(graph: Graph, boxes: str, sizes: _Sizes) -> str:
    """Boxes within the scaled image."""
    height, width = sizes.scaled
    limits = graph.cast(graph.shape(width, height, width, height), np.float32)
    return graph.add("Min", graph.add("Max", boxes, graph.weight(0)), limits)


def _drop_small(graph: Graph, boxes: str, scores: str, least: float) -> str:
    """Scores, -1 for boxes with a shorter side."""
    sides = graph.add("Sub", *_corners(graph, boxes)[::-1])
    shorter = graph.add("ReduceMin", sides, [-1], keepdims=0)
    is_large = graph.add("GreaterOrEqual", shorter, graph.weight(least))
    return graph.add("Where", is_large, scores, graph.weight(-1))


def _sort(graph: Graph, scores: str, count: int) -> tuple[str, str]:
    """The places of the highest scores, at most so many, and these scores."""
    there = graph.add("Gather", graph.add("Shape", scores), 0)
    best, order = graph.add_node(
        "TopK", scores, graph.shape(graph.add("Min", there, count)), outputs=2
    )
    return order, best


def _scale_back(graph: Graph, boxes: str, sizes: _Sizes) -> str:
    """Boxes in pixels of the photo."""
    height, width = (
        graph.add("Div", *(graph.cast(size, np.float32) for size in pair))
        for pair in zip(sizes.photo, sizes.scaled, strict=True)
    )
    factors = [graph.add("Reshape", one, [1]) for one in (width, height, width, height)]
    return graph.add("Mul", boxes, graph.add("Concat", *factors, axis=0))


def _channels_last(graph: Graph, maps: Maps) -> str:
    return graph.add("Transpose", maps.value, perm=[0, 2, 3, 1])


def compare_with_detector(
    detector: Detector, fused: Detector, path: Path, metadata: Mapping[str, str]
) -> dict[str, float]:
    """The differences of what a file finds from what the detector finds, by size of the photo.

    A trained detector may find nothing in what is drawn: a second file, without a least score, is
    compared in all, and the file itself in what has scores above its own.
    """
    numbers = torch.Generator().manual_seed(0)
    everything: Any = copy.deepcopy(detector)
    everything.roi_heads.score_thresh = 0.0
    threshold = detector.options.score_threshold
    written = load_onnx_detector(path)
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        second = Path(folder, path.name)
        write_detector(fused, second, metadata, score_threshold=0.0)
        without_least = load_onnx_detector(second)
    for shares in CHECKED_PHOTOS:
        height, width = (max(1, round(share * detector.options.image_size)) for share in shares)
        photo = draw_photo(detector.backbone.body.in_channels, height, width, numbers)
        pixels = torch.from_numpy(photo).permute(2, 0, 1) / 255
        with torch.inference_mode():
            (expected,) = everything.detect([pixels])
        longer = max(height, width)
        (found,) = without_least.detect([pixels])
        difference = compare_objects(found, expected, longer)
        (found,) = written.detect([pixels])
        expected, found = (
            {name: value[one["scores"] > threshold + TOLERANCE] for name, value in one.items()}
            for one in (expected, found)
        )
        difference = max(difference, compare_objects(found, expected, longer))
        differences[f"1 x {height} x {width}"] = difference
    return differences


def compare_objects(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], longer: int
) -> float:
    """The largest difference of two detections of a photo: of boxes, scores, and a mask's mean.

    Each expected object is compared with the nearest one of its label. One in ten may have none.

    Args:
        found, expected: as `Detector.detect` gives them.
        longer: pixels of the photo's longer side, which boxes are relative to.
    """
    spared = len(expected["scores"]) // OBJECTS_OF_A_CHANGE
    if abs(len(found["scores"]) - len(expected["scores"])) > spared:
        return float("inf")
    if not len(expected["scores"]) or not len(found["scores"]):
        return 0.0
    boxes = (expected["boxes"][:, None] - found["boxes"]).abs().amax(2) / longer
    scores = (expected["scores"][:, None] - found["scores"]).abs()
    apart = torch.maximum(boxes, scores)
    apart[expected["labels"][:, None] != found["labels"]] = float("inf")
    nearest, place = apart.min(1)
    if "masks" in expected:
        masks = (expected["masks"] - found["masks"][place]).abs().flatten(1).mean(1)
        nearest = torch.maximum(nearest, masks)
    return nearest.sort().values[len(nearest) - 1 - spared].item()
