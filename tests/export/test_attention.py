"""Attention in ONNX's operators: the reference's result on every case of the shared table."""

import numpy as np
import onnxruntime
import pytest
import torch

import halonet
from halonet.check.cases import CASES, KERNEL_CASES
from halonet.export import attention
from halonet.export.attention import AttentionLayer, write_attention
from halonet.export.graph import Graph
from halonet.export.maps import Maps
from halonet.ops.problem import Window

CHANNELS = 6  # of the map


def draw_layer(case) -> tuple[torch.Tensor, AttentionLayer]:
    """A map [batch, channels, height, width], and projections with biases."""
    numbers = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=numbers)

    widths = [case.heads * case.channels] * 2 + [case.heads * case.value_channels]
    inputs, options = case.inputs(torch.float32), case.options
    stride, scale = options.get("stride", 1), options.get("scale", case.channels**-0.5)
    layer = AttentionLayer(
        *(draw(width, CHANNELS) * CHANNELS**-0.5 for width in widths),
        *(draw(width) for width in widths),
        row_table=inputs.get("row_table"),
        column_table=inputs.get("column_table"),
        window=Window(
            options["block_size"],
            options["halo_size"],
            stride,
            options.get("kernel_size", 0),
            options.get("position_stride", stride),
            int(options.get("mask_padding", True)),
        ),
        heads=case.heads,
        scale=scale,
        position_scale=options.get("position_scale", scale),
    )
    return draw(case.batch, CHANNELS, case.height, case.width), layer


def run_reference(maps, layer, case) -> torch.Tensor:
    """[batch, height, width, heads * value channels] of the definition, in float64."""
    pixels = maps.double().permute(0, 2, 3, 1)
    query, key, value = (
        torch.nn.functional.linear(pixels, weight.double(), bias.double()).unflatten(
            3, (layer.heads, -1)
        )
        for weight, bias in (
            (layer.query_weight, layer.query_bias),
            (layer.key_weight, layer.key_bias),
            (layer.value_weight, layer.value_bias),
        )
    )
    stride = layer.window.stride
    tables = [
        None if table is None else table.double() for table in (layer.row_table, layer.column_table)
    ]
    found = halonet.halo_attention(
        query[:, ::stride, ::stride], key, value, *tables, **case.options, backend="reference"
    )
    return found.flatten(3)


@pytest.mark.parametrize(
    ("fixed", "opset"), [(False, 23), (True, 18)], ids=["any_size", "fixed_size_opset_18"]
)
@pytest.mark.parametrize("case", CASES + KERNEL_CASES, ids=str)
def test_attention_is_the_references(case, fixed, opset, monkeypatch) -> None:
    maps, layer = draw_layer(case)
    if not fixed:  # three windows at once, in as many turns as it takes
        scores = (layer.window.block_queries * layer.window.size) ** 2
        monkeypatch.setattr(attention, "SCORES_AT_ONCE", 3 * scores)
    graph = Graph(opset=opset)
    sizes = (case.height, case.width) if fixed else ("height", "width")
    images = graph.add_input("maps", np.float32, ["batch", CHANNELS, *sizes])
    if fixed:
        height, width = (graph.constant(size) for size in sizes)
    else:
        height, width = (graph.add("Gather", graph.add("Shape", images), axis) for axis in (2, 3))
    attended = write_attention(graph, Maps(images, CHANNELS, height, width, "planes"), layer)
    graph.add_output(attended.value, "result", np.float32, ["rows", attended.channels])
    session = onnxruntime.InferenceSession(graph.finish({}).SerializeToString())
    (found,) = session.run(None, {"maps": maps.numpy()})
    expected = run_reference(maps, layer, case)
    assert found.shape == (expected.shape[:3].numel(), expected.shape[3])
    difference = np.abs(found - expected.flatten(0, 2).numpy()).max()
    assert difference <= 3e-6 * expected.abs().max()
    operators = {node.op_type for node in graph.finish({}).graph.node}
    assert ("Loop" in operators) != fixed
    computing = {"Range", "Shape", "Div"} & operators
    assert not (fixed and computing), "the geometry of a fixed size isn't known beforehand"


def test_numbers_are_the_same_whatever_lies_outside_the_map() -> None:
    """A masked cell takes no part, though its key is a pixel's that the window has already."""
    case = next(case for case in CASES if case.name == "one_block")
    maps, layer = draw_layer(case)
    large = 1e3 * torch.randn(len(layer.row_table), case.channels // 2)
    # Entries that only cells outside the map would take: those of the largest offsets.
    layer.row_table[-1], layer.row_table[0] = large[0], large[1]
    expected = run_reference(maps, layer, case)
    graph = Graph()
    images = graph.add_input("maps", np.float32, list(maps.shape))
    height, width = graph.constant(case.height), graph.constant(case.width)
    attended = write_attention(graph, Maps(images, CHANNELS, height, width, "planes"), layer)
    graph.add_output(attended.value, "result", np.float32, ["rows", attended.channels])
    session = onnxruntime.InferenceSession(graph.finish({}).SerializeToString())
    (found,) = session.run(None, {"maps": maps.numpy()})
    difference = np.abs(found - expected.flatten(0, 2).numpy()).max()
    assert difference <= 3e-6 * expected.abs().max()


def test_a_result_that_takes_much_more_room_stays_a_node() -> None:
    graph = Graph()
    one = graph.weight(np.ones([1, 1]))
    small, large = (graph.add("Expand", one, graph.shape(side, side)) for side in (8, 1024))
    assert small in graph.constants
    assert large not in graph.constants
