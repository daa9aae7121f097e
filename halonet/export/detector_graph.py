"""torchvision's Mask R-CNN and Faster R-CNN in ONNX operators, as `Detector.detect` runs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from halonet.detection.detector import Detector
from halonet.export.graph import Graph
from halonet.export.layers import write_layer
from halonet.export.maps import Maps, count_pixels, to_array, write_product
from halonet.export.pyramid import write_pyramid
from halonet.models.classifier import STRIDES

SMALLEST_BOX = 1e-2  # pixels on a side; torchvision's, in its `postprocess_detections`
DROPPED = -1.0  # the score of a box that is left out


@dataclass(frozen=True)
class _Sizes:
    """Heights and widths in pixels, as names of scalars: of the photo, as scaled, as padded."""

    photo: Sequence[str]
    scaled: Sequence[str]
    padded: Sequence[str]


def write_detector(
    detector: Detector, path: Path, metadata: Mapping[str, str], *, score_threshold: float
) -> None:
    """Write a fused detector's file, unchecked; objects with this score or less are left out."""
    import onnx

    graph = Graph(opset=18)  # onnxruntime has RoiAlign of opset 16, not of 22
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
            graph.weight(DROPPED),
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
    """Scores, `DROPPED` for boxes with a shorter side."""
    sides = graph.add("Sub", *_corners(graph, boxes)[::-1])
    shorter = graph.add("ReduceMin", sides, [-1], keepdims=0)
    is_large = graph.add("GreaterOrEqual", shorter, graph.weight(least))
    return graph.add("Where", is_large, scores, graph.weight(DROPPED))


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
