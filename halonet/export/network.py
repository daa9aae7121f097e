"""A fused classifier as an ONNX graph: its stages' maps, and its logits."""

from collections.abc import Iterator

from torch import nn

from halonet.export.graph import Graph
from halonet.export.layers import average_pixels, write_layer
from halonet.export.maps import Maps, write_product
from halonet.models.classifier import Classifier
from halonet.models.halonet import HaloNet


def write_network(graph: Graph, model: Classifier, images: Maps) -> str:
    """Logits [batch, num_classes] of images; of no classes, the pooled features.

    Args:
        graph: to write into.
        model: fused, see `Classifier.fuse`.
        images: planes.

    Raises:
        ValueError: a module that has no counterpart here; the message names it.
    """
    *_, maps = write_stages(graph, model, images)
    maps = write_layer(model.parts["final"], graph, maps)
    features = average_pixels(graph, maps)
    classifier = model.get_classifier()
    if isinstance(classifier, nn.Linear):
        return write_product(graph, features, classifier.weight, classifier.bias)
    return features


def write_stages(graph: Graph, model: Classifier, images: Maps) -> Iterator[Maps]:
    """The maps of the four stages, each written when it is asked for.

    Arguments and errors as of `write_network`.
    """
    if not isinstance(model, HaloNet):
        from halonet.export import timm_layers  # noqa: F401 - timm's layers have their writers there

    maps = write_layer(model.stem, graph, images)
    for stage in model.stages:
        maps = write_layer(stage, graph, maps)
        yield maps
