"""timm's layers in an ONNX graph: writers for `halonet.export.layers.write_layer`."""

import torch
from timm.layers import BatchNormAct2d, ConvNormAct, EcaModule, SEModule
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.lambda_layer import LambdaLayer
from timm.models.byobnet import BottleneckBlock, SelfAttnBlock
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from halonet.export.attention import AttentionLayer, write_attention
from halonet.export.graph import Graph
from halonet.export.layers import (
    average_pixels,
    scale_channels,
    to_channel_array,
    write_layer,
    write_residual,
    write_squeeze_excitation,
)
from halonet.export.maps import (
    Maps,
    count_pixels,
    to_array,
    to_planes,
    to_rows,
    write_product,
)
from halonet.layers.timm_attention import TimmHaloAttention
from halonet.ops.problem import Window


@write_layer.register
def _(layer: ConvNormAct, graph: Graph, maps: Maps) -> Maps:
    for one in (layer.conv, layer.bn, layer.aa):
        if one is not None:
            maps = write_layer(one, graph, maps)
    return maps


@write_layer.register
def _(layer: BatchNormAct2d, graph: Graph, maps: Maps) -> Maps:
    """A norm that follows attention, which isn't folded into weights."""
    scale, shift = _as_scale_and_shift(layer)
    value = graph.add("Mul", maps.value, graph.weight(to_channel_array(scale, maps)))
    value = graph.add("Add", value, graph.weight(to_channel_array(shift, maps)))
    return write_layer(layer.act, graph, maps.replace_value(value))


@write_layer.register
def _(layer: nn.AvgPool2d, graph: Graph, maps: Maps) -> Maps:
    if (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode) != (2, 2, 0, False):
        raise ValueError(f"can't export the pooling {layer}")
    planes = to_planes(graph, maps)
    value = graph.add("AveragePool", planes.value, kernel_shape=[2, 2], strides=[2, 2])
    height, width = (graph.add("Div", size, 2) for size in (maps.height, maps.width))
    return Maps(value, maps.channels, height, width, "planes")


@write_layer.register
def _(layer: BottleneckBlock, graph: Graph, maps: Maps) -> Maps:
    branch = maps
    for one in (
        *(layer.conv1_1x1, layer.conv2_kxk, layer.conv2b_kxk, layer.attn),
        *(layer.conv3_1x1, layer.attn_last),
    ):
        branch = write_layer(one, graph, branch)
    return _close_block(layer, graph, branch, maps)


@write_layer.register
def _(layer: SelfAttnBlock, graph: Graph, maps: Maps) -> Maps:
    maps = to_rows(graph, maps)
    branch = maps
    for one in (
        *(layer.conv1_1x1, layer.conv2_kxk, layer.self_attn, layer.post_attn),
        layer.conv3_1x1,
    ):
        branch = write_layer(one, graph, branch)
    return _close_block(layer, graph, branch, maps)


def _close_block(
    layer: BottleneckBlock | SelfAttnBlock, graph: Graph, branch: Maps, maps: Maps
) -> Maps:
    """The rest of a block after its branch; a block may have no shortcut."""
    if layer.shortcut is None:
        return write_layer(layer.act, graph, branch)
    return write_residual(graph, branch, maps, layer.shortcut, layer.act)


@write_layer.register
def _(layer: SEModule, graph: Graph, maps: Maps) -> Maps:
    plain = isinstance(layer.bn, nn.Identity) and not layer.add_maxpool
    if not plain or layer.act is None or type(layer.gate).__name__ != "Sigmoid":
        raise ValueError(f"can't export the gates {layer}")
    return write_squeeze_excitation(graph, maps, layer.fc1, layer.act, layer.fc2)


@write_layer.register
def _(layer: EcaModule, graph: Graph, maps: Maps) -> Maps:
    """Gates by the means of neighbouring channels."""
    if layer.conv2 is not None or type(layer.gate).__name__ != "Sigmoid":
        raise ValueError(f"can't export the gates {layer}")
    means = graph.reshape(average_pixels(graph, maps), -1, 1, maps.channels)
    kernel = graph.weight(to_array(layer.conv.weight))
    reach = layer.conv.weight.shape[2] // 2
    mixed = graph.add("Conv", means, kernel, pads=[reach, reach])
    return scale_channels(
        graph, maps, graph.add("Sigmoid", graph.reshape(mixed, -1, maps.channels))
    )


@write_layer.register
def _(layer: TimmHaloAttention, graph: Graph, maps: Maps) -> Maps:
    keys, values = layer.query_key_channels, layer.value_channels  # of a head
    # The keys and values of a head are adjacent.
    key_weight, value_weight = _split_heads(layer.kv.weight, layer.heads, keys, values)
    key_bias = value_bias = None
    if layer.kv.bias is not None:
        key_bias, value_bias = _split_heads(layer.kv.bias, layer.heads, keys, values)
    rows, columns = layer.tables()
    parameters = AttentionLayer(
        layer.q.weight,
        key_weight,
        value_weight,
        layer.q.bias,
        key_bias,
        value_bias,
        row_table=rows,
        column_table=columns,
        window=Window(
            layer.block_size,
            layer.halo_size,
            layer.stride,
            kernel_size=0,
            position_stride=1,
            mask_padding=0,
        ),
        heads=layer.heads,
        scale=layer.scale,
        position_scale=layer.scale if layer.scale_pos_embed else 1.0,
    )
    return write_layer(layer.pool, graph, write_attention(graph, maps, parameters))


def _split_heads(tensor: Tensor, heads: int, keys: int, values: int) -> tuple[Tensor, Tensor]:
    """A weight or bias of one head after the other, as those of the keys and of the values."""
    key, value = tensor.unflatten(0, (heads, -1)).split([keys, values], dim=1)
    return key.flatten(0, 1), value.flatten(0, 1)


@write_layer.register
def _(layer: BottleneckAttn, graph: Graph, maps: Maps) -> Maps:
    """Global attention on a map of one size: halo attention of one block, without a halo."""
    side = layer.pos_embed.height
    if layer.pos_embed.width != side:
        raise ValueError(f"can't export global attention on {side} x {layer.pos_embed.width} maps")
    parts = _split_projection(layer.qkv, layer.dim_out_qk, layer.dim_out_qk, layer.dim_out_v)
    weights, biases = zip(*parts, strict=True)
    parameters = AttentionLayer(
        *weights,
        *biases,
        row_table=layer.pos_embed.height_rel,
        column_table=layer.pos_embed.width_rel,
        window=Window(
            block_size=side,
            halo_size=0,
            stride=1,
            kernel_size=0,
            position_stride=1,
            mask_padding=0,
        ),
        heads=layer.num_heads,
        scale=layer.scale,
        position_scale=layer.scale if layer.scale_pos_embed else 1.0,
    )
    return write_layer(layer.pool, graph, write_attention(graph, maps, parameters))


@write_layer.register
def _(layer: LambdaLayer, graph: Graph, maps: Maps) -> Maps:
    """A linear function for each pixel, of the whole map and of its neighbourhood.

    Letters of shapes: B images, M pixels, N heads, K query channels of a head, V values.
    """
    if layer.conv_lambda is None:
        raise ValueError("can't export a lambda layer with positions for one map size")
    maps = to_rows(graph, maps)
    pixels, heads = count_pixels(graph, maps), layer.num_heads
    keys, values = layer.dim_qk, layer.dim_v
    of_query, of_key, of_value = _split_projection(layer.qkv, heads * keys, keys, values)
    query = write_product(graph, maps.value, *_fold_norm(*of_query, layer.norm_q))
    key = write_product(graph, maps.value, *of_key)
    value = write_product(graph, maps.value, *_fold_norm(*of_value, layer.norm_v))

    key = graph.add("Softmax", graph.reshape(key, -1, pixels, keys), axis=1)
    value = graph.add("Transpose", graph.reshape(value, -1, pixels, values), perm=[0, 2, 1])
    content = graph.add("Transpose", graph.add("MatMul", value, key), perm=[0, 2, 1])  # [B, K, V]
    # The kernel's third axis is of size 1: each of the values is a map of its own.
    reach = layer.conv_lambda.kernel_size[0] // 2
    inputs = [
        graph.reshape(value, -1, 1, maps.height, maps.width),
        graph.weight(to_array(layer.conv_lambda.weight.squeeze(4))),
    ]
    if layer.conv_lambda.bias is not None:
        inputs.append(graph.weight(to_array(layer.conv_lambda.bias)))
    position = graph.add("Conv", *inputs, pads=[reach] * 4)  # [B V, K, H, W]
    position = graph.reshape(position, -1, values, keys, pixels)
    position = graph.add("Transpose", position, perm=[0, 3, 2, 1])  # [B, M, K, V]
    both = graph.add("Add", graph.add("Unsqueeze", content, [1]), position)
    found = graph.add("MatMul", graph.reshape(query, -1, pixels, heads, keys), both)
    width = heads * values
    rows = Maps(graph.reshape(found, -1, width), width, maps.height, maps.width, "rows")
    return write_layer(layer.pool, graph, rows)


def _split_projection(layer: nn.Conv2d, *widths: int) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of parts of a projection, by their channels."""
    weights = layer.weight.split(widths)
    biases = [None] * len(widths) if layer.bias is None else layer.bias.split(widths)
    return list(zip(weights, biases, strict=True))


def _fold_norm(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor | None]:
    """A weight and bias with the norm that follows in them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return fuse_conv_bn_weights(
        weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _as_scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
